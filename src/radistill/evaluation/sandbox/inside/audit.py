"""Layer `audit`: Python itself refuses what a program has no need for.

It works everywhere and gives a plain PermissionError, but it binds only code that goes through Python: native code,
reached by ctypes or a defect of the interpreter, passes it. It is the last layer, not the one to rely on.
"""

import os
import sys

_REFUSED = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "fcntl.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.putenv",
    "pty.spawn",
    "resource.",  # setting limits, also of another process
    "signal.pthread_kill",
    "sys.addaudithook",
)
_PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "shutil.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(folder: str) -> None:
    """Refuse, from here on, processes, sockets, signals, native calls, and changes of files outside of `folder`."""
    # Everything is bound here: what the program does to `os` must not reach the hook.
    inside = folder.rstrip("/") + "/"
    realpath, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join
    refusal, types = PermissionError, (str, bytes)

    def is_outside(path: object) -> bool:
        if not isinstance(path, types):
            return not isinstance(path, int) and path is not None
        return not (realpath(join(folder, fsdecode(path))) + "/").startswith(inside)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_REFUSED):
            raise refusal(f"{event} is not allowed here")
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and is_outside(path):
                raise refusal(f"writing to {path!r} is not allowed here")
        elif event.startswith(_PATHS) and any(map(is_outside, arguments[:2])):
            raise refusal(f"{event} is not allowed outside of the working folder")

    sys.addaudithook(hook)
