"""Batched generation on top of transformers' `generate`: exact settings, and a cache that survives a kill.

What a model writes depends here on its weights, the prompts and the arguments alone. The `generation_config` that a
checkpoint brings along (repetition penalties, sampling by default, top-k) is set aside, so greedy means greedy; only
its end tokens are used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from radistill.batch_log import append_batch, read_batches
from radistill.console import progress
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.mixers.fast.swap import is_swapped
from radistill.models.anatomy import Component, anatomy_of
from radistill.models.endings import end_tokens
from radistill.models.loading import Model
from radistill.models.pictures import Images
from radistill.models.sequences import image_arguments
from radistill.models.server.served import Server
from radistill.processes import ALONE, Processes

LEAST_TEMPERATURE = 1e-6
"""Of sampling; nearer to 0 than this, text is greedy in all but name."""


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    cache: Path | None = None,
    description: str | None = "generate",
    network: PreTrainedModel | None = None,
    vocabulary: int | None = None,
    stops: frozenset[int] | None = None,
    on_response: Callable[[int, list[int]], None] | None = None,
    server: Server | None = None,
    processes: Processes = ALONE,
    images: Sequence[Images | None] | None = None,
) -> list[list[int]]:
    """Let a model answer token sequences, and return the new tokens of each, in the order of the prompts.

    The batches are formed from all prompts, sorted by length, and each has a seed of its own. So a batch that is found
    in the cache can be skipped without any effect on the others, and an interrupted call that is repeated returns what
    an uninterrupted one would have.

    Args:
        model: gives the tokenizer's padding token, the end tokens and, unless `network` is set, the weights.
        prompts: token ids, each at least one.
        max_new_tokens: longest response, in tokens.
        temperature: 0 takes the likeliest token, otherwise the logits are divided by it before sampling; at least
            `LEAST_TEMPERATURE`.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: for sampling; greedy responses do not depend on it.
        batch_size: prompts that run at once.
        cache: a file to which each finished batch is appended (JSON lines), and from which it is taken when the same
            weights, switched-off components, prompts and settings come again. At most the running batch can be lost.
        description: title of the progress bar; None shows none.
        network: other weights with the same vocabulary, for instance a student's.
        vocabulary: only tokens below it are written, and no image token; None is all that the network has.
        stops: tokens that finish a response; None takes `end_tokens(model)`.
        on_response: called with the index of a prompt and its response, as soon as its batch is there; of several
            processes, in one of them.
        server: writes in place of the network, which then needs no weights; each prompt is a batch of its own, and as
            many are under way as its settings say.
        processes: who share the batches; all must call this together, and all get all responses.
        images: for each prompt, what its image tokens stand for; None where none has images.

    Returns:
        For each prompt 1 to `max_new_tokens` token ids. The last one is one of `stops` if the response is finished, and
        only then.

    Raises:
        RadistillError: on an empty prompt, a token that the network does not know, or settings out of range.
    """
    network = model.network if network is None else network
    if max_new_tokens < 1 or batch_size < 1:
        raise RadistillError(f"generate: max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) start at 1")
    check_sampling(temperature, top_p)
    check_prompts(prompts, network)

    # Longest first: what does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if server is not None:
        groups = [[index] for index in range(len(prompts))]
    stops = end_tokens(model) if stops is None else stops
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stops": sorted(stops)}
    config = _config(model, max_new_tokens, temperature, top_p, stops)
    known = _vocabulary_size(network)
    if vocabulary is not None and vocabulary < known:
        settings["vocabulary"] = vocabulary
        config.suppress_tokens = list(range(vocabulary, known))
    if vocabulary is not None and model.reader is not None:
        config.suppress_tokens = [*(config.suppress_tokens or []), model.reader.token]
    config.use_cache = _cache_is_usable(network)
    source: Any = None if server is None else server.identity
    if cache is not None and server is None:
        source = _function_of(model, network)
    seeds = [int(hash_json([seed, number])[:15], 16) if temperature else 0 for number in range(len(groups))]
    shown = check_shown(model, prompts, images)
    if server is not None and any(shown):
        raise RadistillError("generate: a server is given token ids alone; what sees images has to write here")
    seen = [[] if one is None else one.content for one in shown]
    keys = []
    for group, batch_seed in zip(groups, seeds, strict=True):
        texts, pictures = [list(map(int, prompts[index])) for index in group], [seen[index] for index in group]
        keys.append(hash_json([source, settings, texts, batch_seed, *([pictures] if any(pictures) else [])]))
    finished = processes.decide(lambda: read_batches(cache) if cache is not None else {})

    def keep(number: int, found: list[list[int]]) -> list[list[int]]:
        if cache is not None and keys[number] not in finished:
            append_batch(cache, keys[number], found)
        if on_response is not None:
            for index, tokens in zip(groups[number], found, strict=True):
                on_response(index, tokens)
        return found

    def written(number: int) -> list[list[int]]:
        if keys[number] in finished:
            return keep(number, finished[keys[number]])
        with _standing_alone(network), seeded(network.device, seeds[number]):
            asked = [prompts[index] for index in groups[number]]
            return keep(number, _run(asked, [shown[index] for index in groups[number]], network, config, stops))

    def served(server: Server, advance: Callable[[int], None]) -> list[list[list[int]]]:
        found = {number: keep(number, finished[keys[number]]) for number in turns if keys[number] in finished}

        def write(number: int) -> list[list[int]]:
            return [server.write(prompts[index], config, seed=seeds[number]) for index in groups[number]]

        for number, new in server.at_once(write, [number for number in turns if number not in found]):
            found[number] = keep(number, new)
            advance(len(new))
        return [found[number] for number in turns]

    done = sum(len(group) for group, key in zip(groups, keys, strict=True) if key in finished)
    bar = progress(description, len(prompts), "prompts", done) if description else nullcontext(lambda steps: None)
    # Those that are known first: each process has its share of what is left to be written.
    turns = sorted(range(len(groups)), key=lambda number: (keys[number] not in finished, number))
    with bar as advance:
        if server is not None:  # one process has enough of its requests under way
            parts = processes.decide(partial(served, server, advance))
        else:
            left = {number: len(groups[number]) for number in turns if keys[number] not in finished}
            parts = processes.share(turns, written, lambda done: advance(sum(left.get(number, 0) for number in done)))
    responses: list[list[int]] = [[] for _ in prompts]
    for number, found in zip(turns, parts, strict=True):
        for index, tokens in zip(groups[number], found, strict=True):
            responses[index] = tokens
    return responses


def check_sampling(temperature: float, top_p: float) -> None:
    """Check the settings of sampling; RadistillError if one is out of range."""
    # Logits over a temperature that is all but 0 leave float32, and what is drawn then means nothing.
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature < float("inf")):
        raise RadistillError(
            f"generate: temperature is {temperature}; it is 0 (the likeliest token) or a number from "
            f"{LEAST_TEMPERATURE:g} on"
        )
    if not 0 < top_p <= 1:
        raise RadistillError(f"generate: top_p is {top_p}; it must be above 0 and at most 1")


def check_prompts(prompts: Sequence[Sequence[int]], network: PreTrainedModel) -> None:
    """Check that each prompt has tokens, and only such as the network knows; RadistillError otherwise."""
    vocabulary = _vocabulary_size(network)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise RadistillError(f"generate: prompt {index} has no tokens; a response needs at least one to follow")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise RadistillError(
                f"generate: prompt {index} has a token outside the model's vocabulary (0 to {vocabulary - 1}); "
                "the tokenizer belongs to another model"
            )


def check_shown(
    model: Model, prompts: Sequence[Sequence[int]], images: Sequence[Images | None] | None
) -> list[Images | None]:
    """The images of each prompt; RadistillError where a model that reads none is given some."""
    shown: list[Images | None] = list(images) if images is not None else [None for _ in prompts]
    if len(shown) != len(prompts):
        raise RadistillError(f"generate: {len(prompts)} prompts, but images for {len(shown)}")
    for index, one in enumerate(shown):
        if one is not None and (model.reader is None or model.reader.signature != one.reader.signature):
            raise RadistillError(
                f"generate: prompt {index} has images, which {model.source} does not read, or reads in another way"
            )
    return shown


def _vocabulary_size(network: PreTrainedModel) -> int:
    return next(network.get_input_embeddings().parameters()).shape[0]


def _function_of(model: Model, network: PreTrainedModel) -> list[str]:
    """What decides the logits: the weights, and the modules whose forward a component mask has shadowed."""
    weights = model.fingerprint if network is model.network else replace(model, network=network).fingerprint
    return [weights, *(name for name, module in network.named_modules() if _is_shadowed(module))]


def _is_shadowed(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return forward is not None and not is_swapped(forward)  # a fast path is the same function


def _cache_is_usable(network: PreTrainedModel) -> bool:
    """Whether transformers' key-value cache works under the component mask that is active.

    It reads how many tokens it holds off the first attention layer. If that one is skipped, it believes that it is
    empty and masks the later layers wrongly, so everything has to be computed anew for each token.
    """
    anatomy = anatomy_of(network)
    silent = [
        all(map(_is_shadowed, anatomy.modules(network, layer, Component.ATTENTION)))
        for layer in anatomy.attention_layers
    ]
    return not silent or not silent[0] or all(silent)


def _config(
    model: Model, max_new_tokens: int, temperature: float, top_p: float, stops: frozenset[int]
) -> GenerationConfig:
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=bool(temperature),
        pad_token_id=model.pad_token_id,
        eos_token_id=sorted(stops) or None,
        **sampling,
    )


def _run(
    prompts: Sequence[Sequence[int]],
    images: Sequence[Images | None],
    network: Any,
    config: GenerationConfig,
    stops: frozenset[int],
) -> list[list[int]]:
    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    input_ids = padded(rows, padding_value=config.pad_token_id)  # [batch, time]
    attention_mask = padded([torch.ones_like(row) for row in rows])
    output = network.generate(
        input_ids=input_ids.to(network.device),
        attention_mask=attention_mask.to(network.device),
        generation_config=config,
        **image_arguments(images, input_ids, network.device),
    )
    return [_until_end(row, stops) for row in output[:, input_ids.shape[1] :].tolist()]


def _until_end(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Cut the padding that follows the first end token; the padding token may itself be an end token."""
    end = next((position for position, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


@contextmanager
def evaluating(*networks: PreTrainedModel) -> Iterator[None]:
    """Within the block, the networks are in evaluation mode."""
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)


@contextmanager
def _standing_alone(network: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and none of the checkpoint's own generation settings, which would fill what we leave open."""
    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        with evaluating(network):
            yield
    finally:
        network.generation_config = own


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch inside the block and give the caller's random state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
