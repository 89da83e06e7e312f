"""Layer `limits`: processor time, memory, processes, sizes and numbers of files, on every POSIX system."""

import os
import resource
import signal
import sys
from typing import Any

from radistill.evaluation.sandbox.inside.libc import call, long

_PR_SET_PDEATHSIG = 1
_DESCRIPTORS = 64


def limit(limits: dict[str, Any]) -> None:
    """Set the limits for good: soft and hard ones are the same, but for the second that lies between TERM and KILL."""
    cpu = limits["cpu_seconds"]
    wanted = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (limits["memory_bytes"],) * 2,
        "RLIMIT_FSIZE": (limits["output_bytes"],) * 2,
        "RLIMIT_NOFILE": (_DESCRIPTORS,) * 2,
        "RLIMIT_NPROC": (0, 0),  # of an ordinary user: no further process; root is held by seccomp
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
    }
    for name, values in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, values)
        except (OSError, ValueError):
            # macOS has the name RLIMIT_AS and refuses to set it; on Linux every one of them can be lowered.
            if sys.platform == "linux":
                raise


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it dies (Linux)."""
    if sys.platform != "linux":
        return
    call("prctl", _PR_SET_PDEATHSIG, long(signal.SIGKILL), long(0), long(0), long(0))
    if os.getppid() != parent:  # it has died already
        os._exit(1)
