"""KL-guided selection: which layers an all-SSM student most wants its attention back in (arXiv 2512.20569)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from radistill.console import progress
from radistill.diagnosis.selectors.base import Problem, Selection, best_by_rank, passes_by_rank
from radistill.errors import RadistillError


class KLGuided(BaseModel):
    """Restores one attention at a time in a student that has a fitted block everywhere; those that help least go."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["kl-guided"] = "kl-guided"

    def most_passes(self, candidates: int, sizes: range) -> int:
        """The student without any attention twice, and one for each restored layer."""
        return candidates + 2 + passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Rank the layers by the KL of the otherwise attention-free student in which they alone have it.

        The published method trains each of these students a little; here the blocks are those that were fitted once,
        so a layer costs one forward pass.

        Raises:
            RadistillError: if there are no fitted blocks.
        """
        trials = problem.trials
        if trials.substitutes is None:
            raise RadistillError(
                "the selector kl-guided restores layers in a student of fitted blocks; fit some first (recipes: set "
                "diagnose.by: replaceability)"
            )
        everything = set(problem.candidates)
        trials.stay_near(everything)
        alone = -trials.judge(everything).kl
        scores = {}
        with progress("restore one at a time", len(problem.candidates), "layers") as advance:
            for layer in problem.candidates:
                scores[layer] = trials.judge(everything - {layer}).kl + alone
                advance(1, f"layer {layer}: {scores[layer]:+.4f}")
        return Selection(
            best_by_rank(problem, scores),
            scores,
            "change of KL (nats) when only this layer of an all-SSM student has its attention back",
        )
