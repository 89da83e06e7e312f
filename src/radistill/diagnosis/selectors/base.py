"""What every selector looks like."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from radistill.console import progress
from radistill.diagnosis.plan import By
from radistill.diagnosis.trials import Trials
from radistill.models.anatomy import Component


@dataclass(frozen=True)
class Problem:
    """A question for a selector: which `budget` of the `candidates` should go, or how many of them at most?

    Attributes:
        trials: judges a set of layers that go; larger is better. It ends the search by an exception when its tokens
            are spent; the best set judged by then is the answer (`radistill.diagnosis.search`).
        budget: how many of the `candidates` are to be chosen, or at most.
        seed: of every random choice.
        folder: where a resumable search keeps its state; None keeps it in memory.
        free: whether fewer layers than the budget may be chosen; the objective then has a penalty (`Penalised`).
    """

    trials: Trials
    budget: int
    seed: int = 0
    folder: Path | None = None
    free: bool = False

    @property
    def candidates(self) -> Sequence[int]:
        """The layers that have attention, or what `Trials.parts` has instead."""
        return self.trials.candidates

    @property
    def sizes(self) -> range:
        """How many layers may be chosen."""
        return range(1 if self.free else self.budget, self.budget + 1)


@dataclass(frozen=True)
class Selection:
    """A selector's answer.

    Attributes:
        layers: the chosen layers.
        scores: of each candidate, larger goes sooner, if the selector has such a measure.
        score_kind: what the scores measure, in words.
    """

    layers: Sequence[int]
    scores: dict[int, float] | None = None
    score_kind: str | None = None


class Selector(BaseModel, ABC, extra="forbid"):
    """A way to choose layers. Its settings are its own fields, checked before any model is loaded.

    Attributes:
        kind: the selector's name in recipes and plans.
    """

    kind: str

    def obstacle(self, by: By) -> str | None:
        """Why it cannot choose by redundancy, or by replaceability; None where it can."""
        return None

    @abstractmethod
    def select(self, problem: Problem) -> Selection:
        """Choose some of `problem.candidates`, as many as `problem.sizes` permits."""

    @abstractmethod
    def most_passes(self, candidates: int, sizes: range) -> int:
        """Passes over the calibration documents that it needs at most, each counted as a whole one.

        `sizes` are those that may be chosen, as in `Problem`.
        """


def each_alone(problem: Problem) -> dict[int, float]:
    """Judge every candidate by itself; the values, by layer."""
    scores = {}
    with progress("each layer alone", len(problem.candidates), "layers") as advance:
        for layer in problem.candidates:
            scores[layer] = problem.trials.value([layer])
            advance(1, f"{problem.trials.called(layer)}: {scores[layer]:.4f}")
    return scores


def only_this_layer(trials: Trials) -> str:
    """What the draft of a single layer is, for `Selection.score_kind`."""
    gone = "skipped" if trials.substitutes is None else "replaced by its fitted block"
    part = "this layer's attention" if trials.components == (Component.ATTENTION,) else "this layer"
    return f"with only {part} {gone}"


def of_layers_alone(trials: Trials) -> str:
    """What `each_alone` measures, in words."""
    return f"{trials.objective.name} {only_this_layer(trials)}"


def passes_by_rank(sizes: range) -> int:
    """What `best_size` needs."""
    return len(sizes) if len(sizes) > 1 else 0


def best_by_rank(problem: Problem, scores: dict[int, float]) -> list[int]:
    """The layers with the largest scores, as many of them as `best_size` says."""
    return best_size(problem, partial(most_redundant, scores))


def best_size(problem: Problem, choose: Callable[[int], list[int]]) -> list[int]:
    """The set that `choose` gives for the budget; where the number is free, for the one that the objective likes best.

    Raises:
        OutOfTokens: where several numbers have to be judged, and the search's tokens are spent.
    """
    if not problem.free:
        return choose(problem.budget)
    for size in reversed(problem.sizes):
        problem.trials.value(choose(size))
    best = problem.trials.best(problem.sizes)
    assert best is not None
    return list(best)


def most_redundant(scores: dict[int, float], count: int) -> list[int]:
    """The `count` layers with the largest scores, sorted; of equals the lower layer. A NaN is the smallest."""
    ranked = sorted(scores, key=lambda layer: (math.isnan(scores[layer]), -scores[layer], layer))
    return sorted(ranked[:count])
