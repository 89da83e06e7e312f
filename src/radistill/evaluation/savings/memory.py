"""Peak memory of a piece of work, beyond what was in use when it began."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

_PAUSE_SECONDS = 0.002


@dataclass
class Peak:
    """Filled when the work is done.

    Attributes:
        bytes: of a CUDA device what torch had allocated at most, of a CPU the largest resident size of the process,
            each less what it was at the start; None on other devices, which tell neither.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of `device` while the block runs."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - start
    elif device.type == "cpu":
        _give_back()
        process, done = psutil.Process(), threading.Event()
        start = process.memory_info().rss

        def watch() -> None:
            """Look every two milliseconds, and once at the end: the system's own high-water mark cannot start anew."""
            largest, is_done = start, False
            while not is_done:
                is_done = done.wait(_PAUSE_SECONDS)
                largest = max(largest, process.memory_info().rss)
            peak.bytes = largest - start

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()
    else:
        yield peak


def _give_back() -> None:
    """Let the C library return what is free already: memory that is used again would be missed otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
