"""KL-guided selection: which layers an all-SSM student most wants its attention back in (arXiv 2512.20569)."""

from typing import Literal

from radistill.console import progress
from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, best_by_rank, passes_by_rank


class KLGuided(Selector):
    """Restores one attention at a time in a student that has a fitted block everywhere; those that help least go."""

    kind: Literal["kl-guided"] = "kl-guided"

    def obstacle(self, by: By) -> str | None:
        """It restores attention where a block is."""
        return "diagnose.selector is kl-guided, which compares fitted blocks" if by == "redundancy" else None

    def most_passes(self, candidates: int, sizes: range) -> int:
        """The student without any attention twice, and one for each restored layer."""
        return candidates + 2 + passes_by_rank(sizes)

    def select(self, problem: Problem) -> Selection:
        """Rank the layers by the KL of the otherwise attention-free student in which they alone have it.

        The published method trains each of these students a little; here the blocks are those that were fitted once,
        so a layer costs one forward pass.
        """
        trials = problem.trials
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
