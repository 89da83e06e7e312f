"""Ctrl-C during a long job: the step that runs is finished first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from radistill.console import note


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
