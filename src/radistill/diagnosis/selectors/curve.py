"""One search for all budgets: greedy's chain to its end, and from each size's best set to the next."""

from collections.abc import Collection
from typing import Literal

from pydantic import Field

from radistill.console import progress
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, each_alone, most_redundant, of_layers_alone
from radistill.diagnosis.selectors.greedy import Costs
from radistill.diagnosis.trials import OutOfTokens


class Curve(Selector):
    """Finds the best set of every size at once, which `tradeoff` draws; a plan takes the one of its own size.

    First greedy's chain, from the layer that costs least to all but one. Then from each size's best set to the next, by
    one more layer and by swaps, as in floating search (Pudil, Novovicova and Kittler, 1994).
    """

    kind: Literal["curve"] = "curve"
    width: int = Field(
        default=5, ge=1, description="candidates tried for a place, those that cost least when last tried"
    )
    swap_width: int = Field(default=2, ge=0, description="layers of each set whose place is tried with another")

    def most_passes(self, candidates: int, sizes: range) -> int:
        """Each layer alone, the chain, and at each size one more layer and the swaps."""
        return candidates + 1 + (candidates - 1) * (self.width + 2 + (1 + self.swap_width) * (self.width + 1))

    def select(self, problem: Problem) -> Selection:
        """Choose the best set of a permitted size that was judged on the way.

        The budget changes nothing on the way, so that a plan has the set that the trade-off has measured.

        Raises:
            OutOfTokens: if the search's tokens are spent before the end, but not before such a set was judged. Where
                the layers alone took them all, the answer is the best of these together.
        """
        trials = problem.trials
        scores = each_alone(problem)
        kind = of_layers_alone(trials)
        try:
            self._follow(problem, scores)
        except OutOfTokens:
            if trials.best(problem.sizes) is not None:
                raise
            return Selection(most_redundant(scores, problem.budget), scores, kind)
        best = trials.best(problem.sizes)
        assert best is not None  # the chain passes through every size
        return Selection(best, scores, kind)

    def _follow(self, problem: Problem, scores: dict[int, float]) -> None:
        trials = problem.trials
        costs, most = Costs(trials, scores), len(problem.candidates) - 1
        costs.grow(problem.candidates, most, self.width)
        with progress("the best of each size", max(0, most - 1), "sizes") as advance:
            for size in range(2, most + 1):
                costs.cheapest(self._best(problem, size - 1), problem.candidates, self.width)
                self._swap(problem, costs, self._best(problem, size))
                advance(1, f"{size} layers: {trials.value(self._best(problem, size)):.4f}")

    def _best(self, problem: Problem, size: int) -> set[int]:
        best = problem.trials.best(range(size, size + 1))
        assert best is not None
        return set(best)

    def _swap(self, problem: Problem, costs: Costs, chosen: Collection[int]) -> None:
        """Judge sets in which a layer that cost much has given its place to another; and the smaller ones between."""
        for removed in costs.dearest(chosen, self.swap_width):
            others = [candidate for candidate in problem.candidates if candidate != removed]
            costs.cheapest(set(chosen) - {removed}, others, self.width)
