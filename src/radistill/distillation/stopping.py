"""Which weights a run keeps, and when it ends before its last step.

All of it is decided from Trainer's log, which a checkpoint holds, so that a resumed run decides the same.
transformers' EarlyStoppingCallback counts in memory, and a resumed run would start to count anew.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

WINDOW = 10
"""Steps whose mean loss is compared with earlier means."""

_NEAR = 0.01
"""A mean loss below which a multiple says nothing: a student that starts as its teacher leaves it at once."""

History = Sequence[Mapping[str, Any]]
"""Trainer's log."""


Measure = Literal["kl", "cross_entropy"]
"""What is lowest at the best step, by its name in the log."""


def best_step(history: History, measure: Measure = "kl") -> int:
    """The step after which the measure was lowest, the first of equal ones; the start counts only by itself."""
    measured = _measures(history)
    return min(measured[1:] or measured, key=lambda entry: float(entry[f"eval_{measure}"]))["step"]


def out_of_patience(history: History, patience: int | None, measure: Measure = "kl") -> bool:
    """Whether the last `patience` held-out measures brought none lower than there was before them; None never ends."""
    if patience is None:
        return False
    best = best_step(history, measure)
    return sum(entry["step"] > best for entry in _measures(history)) >= patience


class Divergence:
    """Tells when the mean loss of the last steps has left the lowest that it had ever reached far behind."""

    def __init__(self, factor: float | None, losses: Iterable[float] = (), section: str = "distill") -> None:
        """`factor` of the lowest mean is too much, None never is; `losses` are those of the steps so far.

        `section` of the recipe is where the factor can be changed.
        """
        self._section = section
        self._factor = factor
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._lowest: float | None = None
        for loss in losses:
            self.describe(loss)

    def describe(self, loss: float) -> str | None:
        """Take the loss of the next step; what is wrong with it, or None."""
        self._last.append(loss)
        if len(self._last) < WINDOW:
            return None
        mean = fmean(self._last)
        self._lowest = mean if self._lowest is None else min(self._lowest, mean)
        if self._factor is None or mean <= self._factor * max(self._lowest, _NEAR):
            return None
        return (
            f"the loss diverges, with {mean:.3g} in the mean of the last {WINDOW} steps and {self._lowest:.3g} before "
            f"({self._section}.divergence is {self._factor:g}),"
        )


def _measures(history: History) -> list[Mapping[str, Any]]:
    return [entry for entry in history if "eval_kl" in entry]
