"""Number formats that this machine's processor computes in by emulation."""

import timeit
from functools import cache

import torch

from radistill.console import note

SLOW = 4.0
"""So many times the time of float32 mean emulation; a format without a fast path of its own may take up to twice."""

_SIZE, _PASSES = 256, 5


@cache
def times_as_slow(dtype: torch.dtype) -> float:
    """Time of a matrix product on the CPU over that in float32: below 1 with instructions for it, up to 100 without.

    What a processor can do is measured, not looked up: torch says which instructions there are for few of them.
    """
    return _seconds(dtype) / _seconds(torch.float32)


@cache
def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Say, once, that a format is emulated on this processor, if it is and the processor is the device."""
    if device.type == "cpu" and dtype is not torch.float32 and (times := times_as_slow(dtype)) > SLOW:
        name = str(dtype).removeprefix("torch.")
        note(f"{name}: {times:.0f} times as slow as float32 on this processor, which emulates it; use float32 here")


def _seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    return min(timeit.repeat(lambda: matrix @ matrix, repeat=_PASSES, number=1))
