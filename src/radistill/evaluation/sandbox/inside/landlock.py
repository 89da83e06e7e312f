"""Layer `landlock` (Linux 5.13 and newer): which files can be opened at all, decided by the kernel."""

import contextlib
import ctypes
import os
import struct
import sys

from radistill.evaluation.sandbox.inside.libc import call, long

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE, _READ, _READ_FOLDER = 1, 2, 4, 8
# Rights over files by the version of the interface that brought them: 13, REFER, TRUNCATE, none, IOCTL_DEV.
_RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1, 5: 2**16 - 1}
HOLDS_EVERY_CHANGE = 3
"""Before this version (Linux 6.2), files could be emptied wherever they are."""
_TCP = 0b11  # bind, connect; version 4
_SCOPES = 0b11  # abstract sockets, signals; version 6
_EXECUTING_OR_SPECIAL = _EXECUTE | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11  # make device, socket, pipe, block device

_SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")


def version() -> int:
    """Of the interface that this kernel offers; 0 for none."""
    if sys.platform != "linux":
        return 0
    try:
        return call("syscall", long(_CREATE_RULESET), None, long(0), long(1))
    except OSError:
        return 0


def confine(version: int, writable: bool) -> bool:
    """Allow reading Python and the system's libraries, and anything but executing in the working folder.

    Args:
        version: of the interface, see `version`.
        writable: whether the working folder may be written to.

    Returns:
        Whether the kernel has done it.
    """
    if version < 1:
        return False
    try:
        rights = _RIGHTS[min(version, 5)]
        attributes = struct.pack("=QQQ", rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
        attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
        ruleset = call("syscall", long(_CREATE_RULESET), attributes, long(len(attributes)), long(0))
    except OSError:
        return False
    readable = [*_SHARED, *sys.path]
    for path in readable:
        with contextlib.suppress(FileNotFoundError):
            _allow(ruleset, path, _READ | _READ_FOLDER)
    _allow(ruleset, os.getcwd(), (rights & ~_EXECUTING_OR_SPECIAL) if writable else _READ | _READ_FOLDER)
    call("prctl", _PR_SET_NO_NEW_PRIVS, long(1), long(0), long(0), long(0))
    call("syscall", long(_RESTRICT_SELF), long(ruleset), long(0))
    os.close(ruleset)
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _WRITE | _READ
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle))
        call("syscall", long(_ADD_RULE), long(ruleset), long(1), rule, long(0))
    finally:
        os.close(handle)
