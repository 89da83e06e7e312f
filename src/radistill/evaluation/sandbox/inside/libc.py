"""Calls into the C library; a failed call is an OSError."""

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library.

    Raises:
        OSError: if it returns a negative number, or the library does not have it.
    """
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(f"the C library has no {name}") from None
    function.restype = ctypes.c_long
    result = int(function(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def long(value: int) -> ctypes.c_long:
    """A machine word: what variadic functions such as `syscall` and `prctl` take."""
    return ctypes.c_long(value)
