"""One pass over a context: read it, then decode token by token, each with its time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from radistill.models.cache_names import cache_argument, cache_of
from radistill.models.loading import Model
from radistill.models.timing import timed
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask


@dataclass(frozen=True)
class Pass:
    """What one pass took.

    Attributes:
        prefill_seconds: to read the context.
        step_seconds: of each decoding step.
        cache_bytes: that the cache held after the context: keys, values and states of the whole batch.
    """

    prefill_seconds: float
    step_seconds: list[float]
    cache_bytes: int

    @classmethod
    def of_whole(cls, prefill: float, decoding: float, steps: int, cache_bytes: int) -> "Pass":
        """A pass of which the seconds of all steps together are known."""
        return cls(prefill, [decoding / steps] * steps, cache_bytes)


def by_difference(answer: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Seconds to the first token, and of the steps after it, by two calls that wait for so many tokens."""
    (prefill, _), (whole, _) = (timed(partial(answer, count), torch.device("cpu")) for count in (1, steps + 1))
    return prefill, whole - prefill


@dataclass(frozen=True)
class Drafted:
    """What decoding with a part of the model as its draft brought.

    Attributes:
        tokens_per_second: of one sequence, without the time that reading the context took.
        acceptance_rate: accepted tokens over proposed ones.
    """

    tokens_per_second: float
    acceptance_rate: float


@torch.inference_mode()
def timed_pass(model: Model, context: Tensor, decode_tokens: int) -> Pass:
    """Read `context` [batch, time] and decode greedily, without stopping at an end token."""
    network, name = model.network, cache_argument(model.network)

    def read(tokens: Tensor, **cache: Any) -> Any:
        return network(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)

    prefill_seconds, output = timed(partial(read, context), network.device)
    held = sum(tensor.nbytes for tensor in _tensors(cache_of(output)))
    step_seconds = []
    for _ in range(decode_tokens):
        following, held_in = output.logits[:, -1:].argmax(-1), {name: cache_of(output)}
        seconds, output = timed(partial(read, following, **held_in), network.device)
        step_seconds.append(seconds)
    return Pass(prefill_seconds, step_seconds, held)


def drafted_pass(
    model: Model, context: list[int], mask: ComponentMask, draft_length: int, decode_tokens: int
) -> Drafted | None:
    """Decode by self-speculation; None if the answer ended within its first round, which has no time of its own."""
    rounds: list[tuple[float, int]] = []

    def note_time(_: int, new: list[int]) -> None:
        rounds.append((time.perf_counter(), len(new)))

    decoded = speculative_generate(
        model, [context], mask, draft_length=draft_length, max_new_tokens=decode_tokens, on_tokens=note_time
    )
    if len(rounds) < 2:
        return None
    seconds = rounds[-1][0] - rounds[0][0]
    return Drafted(sum(count for _, count in rounds[1:]) / seconds, decoded.acceptance_rate)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a cache, whatever its layers keep them in."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dict__") and not callable(value):
        yield from _tensors(list(vars(value).values()))
