"""A clock that waits for what a device was told to do."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(run: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds that `run` takes on a device, and what it returns."""
    finish(device)
    started = time.perf_counter()
    result = run()
    finish(device)
    return time.perf_counter() - started, result


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
