"""Each layer taken alone: the layers with the smallest effect, as if effects added up."""

from typing import Literal

from radistill.diagnosis.selectors.base import (
    Problem,
    Selection,
    Selector,
    best_by_rank,
    each_alone,
    only_this_layer,
    passes_by_rank,
)


class LeaveOneOut(Selector):
    """The layers that move the model's distribution least when each of them alone goes, by KL."""

    kind: Literal["leave-one-out"] = "leave-one-out"

    def most_passes(self, candidates: int, sizes: range) -> int:
        """One for each layer, and what it takes to choose how many."""
        return candidates + passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Choose the layers with the smallest KL."""
        each_alone(problem)
        scores = {layer: -problem.trials.judge([layer]).kl for layer in problem.candidates}
        return Selection(
            best_by_rank(problem, scores),
            scores,
            f"minus KL(model || draft) in nats {only_this_layer(problem.trials)}",
        )
