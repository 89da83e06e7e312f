"""How long the components of a decoder take in one decoding step on this machine, timed once."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import hash_json, read_kept, write_kept
from radistill.models.anatomy import Component
from radistill.models.cache_names import cache_argument, cache_of
from radistill.models.loading import Model
from radistill.models.timing import finish, timed
from radistill.provenance import machine
from radistill.speculation.masks import ComponentMask
from radistill.speculation.payoff import LONGEST_DRAFT, RoundCosts

_VERIFIED = (1, 2, 3, 5, 9, 17)
_REPEATS = 7


@dataclass(frozen=True)
class Latencies:
    """Seconds of a decoding step of one sequence, part by part.

    Attributes:
        context: tokens in the cache.
        components: by layer and component, seconds for one token.
        head: of the output embedding.
        rest: of what no mask can skip: embedding, norms, residual sums, the bookkeeping around them.
        passes: seconds of a pass of the full model over so many new tokens, as a verification is.
    """

    context: int
    components: dict[tuple[int, Component], float]
    head: float
    rest: float
    passes: dict[int, float]

    def step(self, mask: ComponentMask) -> float:
        """Seconds of one decoding step of the draft that skips `mask`."""
        return self.rest + self.head + sum(s for part, s in self.components.items() if part not in mask.skipped)

    def verify(self, tokens: int) -> float:
        """Seconds of the full model over `tokens` new tokens; between the timed counts, on a straight line."""
        counts = sorted(self.passes)
        if not counts[0] <= tokens <= counts[-1]:
            raise ValueError(f"a pass over {tokens} tokens lies outside of those that were timed: {counts}")
        return float(np.interp(tokens, counts, [self.passes[count] for count in counts]))

    def rounds(self, mask: ComponentMask) -> RoundCosts:
        """What rounds of one sequence cost where the draft skips `mask`, but for judging and forgetting tokens."""
        step = self.step(mask)
        return RoundCosts(
            context=self.context,
            batch_size=1,
            plain=self.verify(1),
            draft={drafted: drafted * step for drafted in (1, LONGEST_DRAFT)},
            verify={tokens: seconds for tokens, seconds in self.passes.items() if tokens > 1},
            catch_up=step,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON, for the plan and for a file."""
        layers: dict[str, dict[str, float]] = {}
        for (layer, component), seconds in self.components.items():
            layers.setdefault(str(layer), {})[str(component)] = seconds
        passes = {str(tokens): seconds for tokens, seconds in self.passes.items()}
        return {"context": self.context, "layers": layers, "head": self.head, "rest": self.rest, "passes": passes}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Latencies":
        """The inverse of `to_json`."""
        components = {
            (int(layer), Component(component)): seconds
            for layer, parts in data["layers"].items()
            for component, seconds in parts.items()
        }
        passes = {int(tokens): seconds for tokens, seconds in data["passes"].items()}
        return cls(data["context"], components, data["head"], data["rest"], passes)


def timed_once(model: Model, context: int, folder: Path | None, field: str = "diagnose.context_length") -> Latencies:
    """The latencies that lie in `folder` from an earlier start of the same search, or new ones that are left there.

    A search that is resumed must not find its objective changed by another timing.
    """
    path, key = None, hash_json([model.fingerprint, context, machine()])
    if folder is not None:
        path = folder / f"latencies-{key[:12]}.json"
        if (kept := read_kept(path, key)) is not None:
            return Latencies.from_json(kept)
    latencies = time_components(model, context, field=field)
    step = latencies.verify(1)
    note(f"timed with {context} tokens in the cache: {1000 * step:.1f} ms a decoding step of the full model")
    if path is not None:
        write_kept(path, key, latencies.to_json())
    return latencies


def time_components(
    model: Model, context: int, repeats: int = _REPEATS, field: str = "diagnose.context_length"
) -> Latencies:
    """Time a decoding step of each component, with `context` tokens in the cache, batch size 1.

    `field` is how the user gave the context.

    Every figure is the median of `repeats` steps after one to warm up. The cache grows a little meanwhile, by at most
    a few hundred tokens.

    Raises:
        RadistillError: if the model cannot hold that many tokens.
    """
    network, anatomy = model.network, model.anatomy
    longest = model.context_length
    if context < 1 or (longest is not None and context > longest):
        raise RadistillError(f"{field} is {context}, but this model takes from 1 to {longest} tokens")
    parts: dict[Any, list[nn.Module]] = {
        (layer, component): modules
        for layer in range(anatomy.num_layers)
        for component in Component
        if (modules := anatomy.modules(network, layer, component))
    }
    parts["head"] = [network.get_output_embeddings()]
    ids = torch.arange(context + 1, device=network.device).remainder(anatomy.vocab_size)[None]
    with torch.inference_mode():
        cache = cache_of(network(input_ids=ids[:, :context], use_cache=True, logits_to_keep=1))

        def step(tokens: int) -> float:
            new = ids[:, -1:].expand(1, tokens)
            given = {cache_argument(network): cache}
            return timed(lambda: network(input_ids=new, use_cache=True, **given), network.device)[0]

        passes = {}
        for tokens in _VERIFIED:
            step(tokens)
            passes[tokens] = statistics.median(step(tokens) for _ in range(repeats))
        with _clocks(parts, network.device) as times:
            for _ in range(repeats):
                step(1)
    # A part of several modules has as many calls a step.
    steps = {part: np.reshape(seconds, (repeats, -1)).sum(axis=1) for part, seconds in times.items()}
    medians = {part: float(np.median(seconds)) for part, seconds in steps.items()}
    head = medians.pop("head")
    # Clocks around every component slow a step down a little; what is left of an undisturbed step is the rest.
    rest = max(0.0, passes[1] - head - sum(medians.values()))
    return Latencies(context, medians, head, rest, passes)


@contextmanager
def _clocks(parts: dict[Any, list[nn.Module]], device: torch.device) -> Iterator[dict[Any, list[float]]]:
    """Collect the seconds of every call of every part's modules, in the order of the calls."""
    times: dict[Any, list[float]] = {part: [] for part in parts}
    started: dict[nn.Module, float] = {}

    def start(module: nn.Module, args: Any) -> None:
        finish(device)
        started[module] = time.perf_counter()

    def stop(part: Any, module: nn.Module, args: Any, output: Any) -> None:
        finish(device)
        times[part].append(time.perf_counter() - started[module])

    with ExitStack() as stack:
        for part, modules in parts.items():
            for module in modules:
                stack.enter_context(module.register_forward_pre_hook(start))
                stack.enter_context(module.register_forward_hook(partial(stop, part)))
        yield times
