"""Each layer skipped alone: the layers with the smallest effect, as if effects added up."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from radistill.diagnosis.selectors.base import Problem, Selection, each_alone, most_redundant


class LeaveOneOut(BaseModel):
    """The layers whose single skip moves the model's distribution least, by KL."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["leave-one-out"] = "leave-one-out"

    def most_passes(self, candidates: int, budget: int) -> int:
        """One for each layer."""
        return candidates

    def select(self, problem: Problem) -> Selection:
        """Choose the layers with the smallest KL."""
        each_alone(problem)
        scores = {layer: -problem.trials.judge([layer]).kl for layer in problem.candidates}
        return Selection(
            most_redundant(scores, problem.budget),
            scores,
            "minus KL(model || draft) in nats with only this layer's attention skipped",
        )
