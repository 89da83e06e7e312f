"""What every selector looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from radistill.diagnosis.trials import Trials


@dataclass(frozen=True)
class Problem:
    """A question for a selector: which `budget` of the `candidates` should go?

    Attributes:
        trials: judges a set of skipped layers; larger is better.
        candidates: the layers that have attention.
        budget: how many of them are to be chosen.
        seed: of every random choice.
        folder: where a resumable search keeps its state; None keeps it in memory.
    """

    trials: Trials
    candidates: Sequence[int]
    budget: int
    seed: int
    folder: Path | None = None


@dataclass(frozen=True)
class Selection:
    """A selector's answer.

    Attributes:
        layers: the chosen layers.
        scores: redundancy of each candidate, larger is more redundant, if the selector has such a measure.
        score_kind: what the scores measure, in words.
    """

    layers: Sequence[int]
    scores: dict[int, float] | None = None
    score_kind: str | None = None


class Selector(Protocol):
    """A way to choose layers. Its settings are its own fields, checked before any model is loaded."""

    @property
    def kind(self) -> str:
        """The selector's name in recipes and plans."""
        ...

    def select(self, problem: Problem) -> Selection:
        """Choose exactly `problem.budget` of `problem.candidates`."""
        ...

    def model_dump(self, *, mode: str, exclude: set[str] | None = None) -> dict[str, Any]:
        """The settings, for the plan; those that a selector does not have may be excluded all the same."""
        ...
