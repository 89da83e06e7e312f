"""Which weights a run keeps, and when it ends before its last step.

All but Ctrl-C is decided from the log, which a checkpoint holds, so that a resumed run decides the same.
"""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from types import FrameType
from typing import Literal

from radistill.console import note

WINDOW = 10
"""Steps whose mean loss is compared with earlier means."""

_NEAR = 0.01
"""A mean loss below which a multiple says nothing: a student that starts as its teacher leaves it at once."""

Evaluations = Sequence[Mapping[str, float]]
"""Held-out measures so far, the start's first."""


Measure = Literal["kl", "cross_entropy"]
"""What is lowest at the best step, by its name in the log."""


def best_step(evaluations: Evaluations, measure: Measure = "kl") -> int:
    """The step after which the measure was lowest, the first of equal ones; the start counts only by itself."""
    return int(min(evaluations[1:] or evaluations, key=lambda row: row[measure])["step"])


def out_of_patience(evaluations: Evaluations, patience: int | None, measure: Measure = "kl") -> bool:
    """Whether the last `patience` held-out measures brought none lower than there was before them; None never ends."""
    if patience is None or not evaluations:
        return False
    best = best_step(evaluations, measure)
    return sum(row["step"] > best for row in evaluations) >= patience


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


@contextmanager
def deferred_interrupt(message: str) -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C prints `message` and is remembered; a second one interrupts at once.

    Yields a function that tells whether Ctrl-C was pressed: the job asks it at points where it can stop, and raises
    KeyboardInterrupt itself. In a thread other than the main one, Python does not allow it and nothing is deferred.
    """
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)
        note(message)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
