"""Batched generation on top of transformers' `generate`: exact settings, and a cache that survives a kill.

What a model writes depends here on its weights, the prompts and the arguments alone. The `generation_config` that a
checkpoint brings along (repetition penalties, sampling by default, top-k) is set aside, so greedy means greedy; only
its end tokens are used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from radistill.batch_log import append_batch, read_batches
from radistill.console import progress
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.anatomy import Component, anatomy_of
from radistill.models.endings import end_tokens
from radistill.models.loading import Model

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
        vocabulary: only tokens below it are written; None is all that the network has.
        stops: tokens that finish a response; None takes `end_tokens(model)`.
        on_response: called with the index of a prompt and its response, as soon as its batch is there.

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
    stops = end_tokens(model) if stops is None else stops
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stops": sorted(stops)}
    config = _config(model, max_new_tokens, temperature, top_p, stops)
    known = _vocabulary_size(network)
    if vocabulary is not None and vocabulary < known:
        settings["vocabulary"] = vocabulary
        config.suppress_tokens = list(range(vocabulary, known))
    config.use_cache = _cache_is_usable(network)
    source = _function_of(model, network) if cache is not None else None
    seeds = [int(hash_json([seed, number])[:15], 16) if temperature else 0 for number in range(len(groups))]
    keys = [
        hash_json([source, settings, [list(map(int, prompts[index])) for index in group], batch_seed])
        for group, batch_seed in zip(groups, seeds, strict=True)
    ]
    finished = read_batches(cache) if cache is not None else {}

    responses: list[list[int]] = [[] for _ in prompts]
    done = sum(len(group) for group, key in zip(groups, keys, strict=True) if key in finished)
    shown = (
        progress(description, total=len(prompts), unit="prompts", done=done)
        if description
        else nullcontext(lambda steps: None)
    )
    with shown as advance:
        for group, key, batch_seed in zip(groups, keys, seeds, strict=True):
            if key in finished:
                written = finished[key]
            else:
                with _standing_alone(network), seeded(network.device, batch_seed):
                    written = _run([prompts[index] for index in group], network, config, stops)
                if cache is not None:
                    append_batch(cache, key, written)
                advance(len(group))
            for index, tokens in zip(group, written, strict=True):
                responses[index] = tokens
                if on_response is not None:
                    on_response(index, tokens)
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


def _vocabulary_size(network: PreTrainedModel) -> int:
    return next(network.get_input_embeddings().parameters()).shape[0]


def _function_of(model: Model, network: PreTrainedModel) -> list[str]:
    """What decides the logits: the weights, and the modules whose forward a component mask has shadowed."""
    weights = model.fingerprint if network is model.network else replace(model, network=network).fingerprint
    return [weights, *(name for name, module in network.named_modules() if _is_shadowed(module))]


def _is_shadowed(module: nn.Module) -> bool:
    return "forward" in vars(module)


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
    prompts: Sequence[Sequence[int]], network: Any, config: GenerationConfig, stops: frozenset[int]
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), config.pad_token_id, dtype=torch.long)  # [batch, time]
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[row, width - len(prompt) :] = 1
    output = network.generate(
        input_ids=input_ids.to(network.device),
        attention_mask=attention_mask.to(network.device),
        generation_config=config,
    )
    return [_until_end(row, stops) for row in output[:, width:].tolist()]


def _until_end(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Cut the padding that follows the first end token; the padding token may itself be an end token."""
    for position, token in enumerate(tokens):
        if token in stops:
            return tokens[: position + 1]
    return tokens


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
