"""Forward selection, then a local search by swaps."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import Field

from radistill.console import progress
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, each_alone, most_redundant, of_layers_alone
from radistill.diagnosis.trials import Trials


class Greedy(Selector):
    """Takes one more layer at a time, the one that costs least beside those already taken; then swaps pairs."""

    kind: Literal["greedy"] = "greedy"
    width: int = Field(
        default=5, ge=1, description="candidates tried for a place, those that cost least when last tried"
    )
    swaps: int = Field(default=20, ge=0, description="swaps of a taken layer for another, at most")
    swap_width: int = Field(default=3, ge=1, description="taken layers that a swap tries to give back")

    def most_passes(self, candidates: int, sizes: range) -> int:
        """Each layer alone, and for each place and each swap the tried candidates and the set that they start from."""
        budget = sizes[-1]
        swap = budget + 1 + (self.swap_width + (len(sizes) > 1)) * (self.width + 1)
        return candidates + 1 + budget * (self.width + 1) + self.swaps * swap

    def select(self, problem: Problem) -> Selection:
        """Maximise the objective over sets of as many layers as the problem permits.

        What a layer costs is remembered from the last time that it was tried, as in lazy greedy (Minoux, 1978); layers
        interact, so the remembered cost only decides which candidates are tried again. All sets of a round differ from
        the round's own set in one layer, and start at that layer.
        """
        trials = problem.trials
        scores = each_alone(problem)
        trials.value(most_redundant(scores, problem.budget))  # something to return if the tokens are spent early
        costs = Costs(trials, scores)
        costs.grow(problem.candidates, problem.budget, self.width)
        best = trials.best(problem.sizes)
        assert best is not None  # the last set of the chain has the right size
        chosen = set(best)
        with progress("swaps", self.swaps, "swaps") as advance:
            for _ in range(self.swaps):
                current = trials.value(chosen)
                steps = self._steps(problem, costs, chosen)
                better = next((step for step in steps if trials.value(step) > current), None)
                if better is None:
                    break
                chosen = better
                advance(1, f"best {trials.value(chosen):.4f}")
        return Selection(sorted(chosen), scores, of_layers_alone(trials))

    def _steps(self, problem: Problem, costs: "Costs", chosen: set[int]) -> Iterator[set[int]]:
        """Sets that differ from `chosen` in one layer, or in one pair of layers, the most promising first."""
        trials = problem.trials
        if problem.sizes == range(1, 2):
            return  # every single layer has been judged
        trials.stay_near(chosen)
        without = {layer: trials.value(chosen - {layer}) for layer in sorted(chosen) if len(chosen) > 1}
        # Layers whose return helps most, and so whose place is best given to another.
        for removed in sorted(without, key=lambda layer: (-without[layer], layer))[: self.swap_width]:
            if len(chosen) - 1 in problem.sizes:
                yield chosen - {removed}
            others = [candidate for candidate in problem.candidates if candidate != removed]
            yield chosen - {removed} | {costs.cheapest(chosen - {removed}, others, self.width)[0]}
        if len(chosen) + 1 in problem.sizes:
            yield chosen | {costs.cheapest(chosen, problem.candidates, self.width)[0]}


class Costs:
    """What it changed to take each layer, when that was last tried."""

    def __init__(self, trials: Trials, alone: dict[int, float]) -> None:
        self._trials = trials
        self._last = dict(alone)

    def dearest(self, chosen: Iterable[int], count: int) -> list[int]:
        """The `count` layers of a set that cost most when they were last tried; of equals the lower ones."""
        return sorted(chosen, key=lambda layer: (self._last[layer], layer))[:count]

    def grow(self, candidates: Sequence[int], size: int, width: int) -> None:
        """Judge a chain of sets, up to `size` layers: each has the cheapest layer beside those of the one before."""
        chain: set[int] = set()
        with progress(f"one after another to {size}", size, "layers") as advance:
            while len(chain) < size:
                layer, value = self.cheapest(chain, candidates, width)
                chain.add(layer)
                advance(1, f"{self._trials.called(layer)}: {value:.4f}")

    def cheapest(self, chosen: set[int], candidates: Iterable[int], width: int) -> tuple[int, float]:
        """The best layer to take beside `chosen`, and the value of both, among the `width` most promising."""
        trials = self._trials
        promising = sorted(set(candidates) - chosen, key=lambda layer: (-self._last[layer], layer))[:width]
        if chosen:
            trials.stay_near(chosen)
        base = trials.value(chosen) if chosen else 0.0
        values = {layer: trials.value(chosen | {layer}) for layer in promising}
        self._last |= {layer: value - base for layer, value in values.items()}
        best = min(values, key=lambda layer: (-values[layer], layer))
        return best, values[best]
