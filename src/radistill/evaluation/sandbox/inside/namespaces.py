"""Layer `namespaces` (Linux, where ordinary users may make them): no network, no `/proc`, a folder of limited size."""

import os
import sys

from radistill.evaluation.sandbox.inside.libc import call

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 0x4000, 1 << 18
_FILES = 1000


def enter(disk_bytes: int) -> bool | None:
    """Leave the machine's namespaces for new ones: of users, network, mounts, IPC and host name.

    The network namespace has no interface that is up. An empty file system in memory, with room for `disk_bytes` in at
    most 1,000 files, covers the working folder and goes with the process. One without any covers `/proc`, where other
    processes' memory and environment can be read.

    Returns:
        True; False if only the file system could not be mounted; None if the kernel refuses namespaces.
    """
    if sys.platform != "linux":
        return None
    user, group, folder = os.getuid(), os.getgid(), os.getcwd()
    try:
        call("unshare", _NEWUSER | _NEWNET | _NEWNS | _NEWIPC | _NEWUTS)
    except OSError:
        return None
    try:
        for file, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as handle:
                handle.write(content)
        call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        options = f"size={disk_bytes},nr_inodes={_FILES},mode=700".encode()
        call("mount", b"none", os.fsencode(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
        os.chdir(folder)  # the old one is below the mount
        call("mount", b"none", b"/proc", b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY, None)
    except OSError:
        return False
    return True
