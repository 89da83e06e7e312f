"""transformers' assisted generation: its own draft-and-verify, with a second model as `assistant_model`."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.pictures import Images
from radistill.models.sequences import image_arguments


@dataclass(frozen=True)
class Assisted:
    """A greedy response by assisted generation.

    Attributes:
        tokens: of the response, an end token included.
        drafted: tokens that the assistant proposed, one in each of its passes.
        rounds: passes of the target.
        seconds: wall time.
    """

    tokens: list[int]
    drafted: int
    rounds: int
    seconds: float


def assisted(
    target: Model, draft: Model, prompt: Sequence[int], count: int, draft_length: int, images: Images | None = None
) -> Assisted:
    """Answer a prompt, perhaps with images, with up to `count` tokens; the assistant proposes `draft_length` a round.

    Where the vocabularies are padded differently, transformers wants both tokenizers and takes tokens by their texts.
    """
    ids = torch.tensor([list(prompt)], device=target.network.device)
    options = {}
    if target.anatomy.vocab_size != draft.anatomy.vocab_size:
        options = {"tokenizer": target.tokenizer, "assistant_tokenizer": draft.tokenizer}
    settings = draft.network.generation_config
    kept = {name: getattr(settings, name) for name in _CONSTANT}
    with evaluating(target.network, draft.network), _passes(target.network, draft.network) as passes:
        settings.update(**{**_CONSTANT, "num_assistant_tokens": draft_length})
        started = time.perf_counter()
        try:
            network: Any = target.network  # its type is that of a module, which has no such method
            text = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=draft.network,
                max_new_tokens=count,
                do_sample=False,
                **options,
                **image_arguments([images], ids, ids.device),
            )[0]
        finally:
            settings.update(**kept)
        seconds = time.perf_counter() - started
    tokens = text[len(prompt) :].tolist()
    return Assisted(tokens, passes[draft.network], passes[target.network], seconds)


# Always the same number of tokens, however sure the assistant is.
_CONSTANT = {
    "num_assistant_tokens": None,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}


@contextmanager
def _passes(*networks: nn.Module) -> Iterator[Counter[nn.Module]]:
    """Count the passes of networks."""
    counts: Counter[nn.Module] = Counter()

    def count(network: nn.Module, args: object, output: object) -> None:
        counts[network] += 1

    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network.register_forward_hook(count))
        yield counts
