"""Evenly spaced layers, starting with the first: the baseline (Mamba-in-the-Llama, arXiv 2408.15237)."""

from typing import Literal

from radistill.diagnosis.selectors.base import Problem, Selection, Selector, best_size, passes_by_rank


class Uniform(Selector):
    """Every n-th attention layer, whatever the model; for half of the layers these are 0, 2, 4, …"""

    kind: Literal["uniform"] = "uniform"

    def most_passes(self, candidates: int, sizes: range) -> int:
        """It looks at no data, unless it has to choose how many."""
        return passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Choose evenly spaced candidates."""
        candidates = problem.candidates

        def spaced(size: int) -> list[int]:
            return [candidates[index * len(candidates) // size] for index in range(size)]

        return Selection(best_size(problem, spaced))
