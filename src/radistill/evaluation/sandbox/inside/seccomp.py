"""Layer `seccomp` (Linux, x86-64 and AArch64): which calls of the kernel exist at all for the program.

What is not listed fails with EPERM: among others everything that makes a process or thread (fork, clone, exec), a
socket, a namespace or a mount, that signals, traces or watches another process, or that raises a limit. Calls
that do several things, such as `fcntl` and `ioctl`, pass only for what Python has a use for: a pipe, too, can be told
to signal any process (F_SETOWN, F_SETSIG, O_ASYNC).
"""

import ctypes
import os
import platform
import struct
import sys

from radistill.evaluation.sandbox.inside.libc import call, long

# Read on import, before any layer hides the file.
with open(os.path.join(os.path.dirname(__file__), "calls.txt"), encoding="utf-8") as _file:
    _READING, _CHANGING_FILES = (
        [line.split()[1:] for line in part.splitlines() if not line.startswith("#")]
        for part in _file.read().split("\n\n")
    )
_OPEN, _OPENAT, _IOCTL, _TGKILL, _PRLIMIT = (2, 0), (257, 56), (16, 29), (234, 131), (302, 261)
_FCNTL, _MADVISE = (72, 25), (28, 233)
_SET_FLAGS = 4
_DUPLICATE_OR_FLAGS = (0, 1, 2, 3, _SET_FLAGS, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_O_ASYNC = 0x2000
_USUAL_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15)  # NORMAL to DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE; others break memory pages
_TERMINAL_OR_CLOEXEC = (0x5401, 0x5413, 0x5450, 0x5451, 0x541B)  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX, FIONREAD

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # 1: EPERM
_NUMBER, _ARCHITECTURE = 0, 4
_X32 = 0x40000000  # the other numbering that x86-64 kernels understand
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def filter_calls(writable: bool) -> bool:
    """Give up every call of the kernel that is not listed, for this process and for good.

    Args:
        writable: whether files may be created and changed, as far as another layer confines where.

    Returns:
        Whether the kernel has done it.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.maxsize < 2**32:
        return False
    instructions = _instructions(*machine, writable)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    try:
        call("prctl", _PR_SET_NO_NEW_PRIVS, long(1), long(0), long(0), long(0))
        call("prctl", _PR_SET_SECCOMP, long(_MODE_FILTER), ctypes.byref(program))
    except OSError:
        return False
    return True


def _instructions(column: int, architecture: int, writable: bool) -> list[Instruction]:
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for numbers in [*_READING, *(_CHANGING_FILES if writable else ())]:
        if numbers[column] != "-":
            program += _if_number(int(numbers[column]), [(_RETURN, 0, 0, _ALLOW)])
    own = [os.getpid()]
    program += _if_number(_TGKILL[column], _only_if_argument(0, own))  # abort() and raise()
    program += _if_number(_PRLIMIT[column], _only_if_argument(0, [0, *own]))  # reading; no hard limit can be raised
    program += _if_number(_MADVISE[column], _only_if_argument(2, _USUAL_ADVICE))
    setting = [_argument(1), (_EQUAL, 0, 4, _SET_FLAGS), *_unless_argument_has(2, _O_ASYNC)]
    program += _if_number(_FCNTL[column], [*setting, *_only_if_argument(1, _DUPLICATE_OR_FLAGS)])
    program += _if_number(_IOCTL[column], _only_if_argument(1, _TERMINAL_OR_CLOEXEC))
    allowed = [(_RETURN, 0, 0, _ALLOW)]
    if _OPEN[column]:
        program += _if_number(_OPEN[column], allowed if writable else _unless_argument_has(1, _WRITING))
    program += _if_number(_OPENAT[column], allowed if writable else _unless_argument_has(2, _WRITING))
    return [*program, (_RETURN, 0, 0, _REFUSE)]


def _if_number(number: int, then: list[Instruction]) -> list[Instruction]:
    return [(_EQUAL, 0, len(then), number), *then]


def _only_if_argument(position: int, values: tuple[int, ...] | list[int]) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [_argument(position), *tests, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _unless_argument_has(position: int, bits: int) -> list[Instruction]:
    return [_argument(position), (_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _argument(position: int) -> Instruction:
    """The low half of an argument: both machines are little-endian, and what is compared here has 32 bits."""
    return (_LOAD, 0, 0, 16 + 8 * position)
