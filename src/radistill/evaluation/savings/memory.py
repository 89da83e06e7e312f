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
        with _Watch() as watch:
            yield peak
        peak.bytes = watch.largest - watch.start
    else:
        yield peak


class _Watch:
    """Looks at the resident size of this process every two milliseconds; a high-water mark could not start anew."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.start = self.largest = self._process.memory_info().rss

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._update()

    def _look(self) -> None:
        while not self._done.wait(_PAUSE_SECONDS):
            self._update()

    def _update(self) -> None:
        self.largest = max(self.largest, self._process.memory_info().rss)


def _give_back() -> None:
    """Let the C library return what is free already: memory that is used again would be missed otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
