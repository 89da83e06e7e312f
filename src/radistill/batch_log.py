"""A file of finished batches, one a line: what a killed job has done already."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from radistill.files import read_rows, sealed, unsealed


def read_batches(path: Path) -> dict[str, Any]:
    """The result of each batch by its key. A line that is torn or damaged is skipped: its batch runs again."""
    found: dict[str, Any] = {}
    if path.exists():
        for _, row in read_rows(path, skip_damaged=True):
            found |= unsealed(row)
    return found


def append_batch(path: Path, key: str, result: Any) -> None:
    """Add the result of a batch, so that it is on disk before the next one begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # several processes of one command write theirs here
        # A torn last line must not swallow the next one.
        handle.seek(0, os.SEEK_END)
        torn = handle.tell() > 0
        if torn:
            handle.seek(-1, os.SEEK_END)
            torn = handle.read(1) != b"\n"
        line = json.dumps(sealed(key, result), separators=(",", ":")).encode()
        handle.write((b"\n" if torn else b"") + line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
