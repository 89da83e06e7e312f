"""Evenly spaced layers, starting with the first: the baseline (Mamba-in-the-Llama, arXiv 2408.15237)."""

from collections.abc import Sequence
from typing import Literal

from radistill.diagnosis.selectors.base import Problem, Selection, Selector, passes_by_rank


class Uniform(Selector):
    """Every n-th attention layer, whatever the model; for half of the layers these are 0, 2, 4, …"""

    kind: Literal["uniform"] = "uniform"

    def most_passes(self, candidates: int, sizes: range) -> int:
        """It looks at no data, unless it has to choose how many."""
        return passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Choose evenly spaced candidates."""
        if not problem.free:
            return Selection(_spaced(problem.candidates, problem.budget))
        trials = problem.trials
        for size in reversed(problem.sizes):
            trials.value(_spaced(problem.candidates, size))
        best = trials.best(problem.sizes)
        assert best is not None
        return Selection(best)


def _spaced(candidates: Sequence[int], size: int) -> list[int]:
    return [candidates[index * len(candidates) // size] for index in range(size)]
