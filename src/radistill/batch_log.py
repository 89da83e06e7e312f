"""Files of what a killed job has done already, one finished batch a line."""

import json
import os
from pathlib import Path
from typing import Any


def read_batches(path: Path) -> dict[str, Any]:
    """The result of each batch by its key. A line that a kill has torn is skipped: its batch runs again."""
    found: dict[str, Any] = {}
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            found[entry["key"]] = entry["responses"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def append_batch(path: Path, key: str, responses: Any) -> None:
    """Add the result of a batch, so that it is on disk before the next one begins."""
    append_row(path, {"key": key, "responses": responses})


def append_row(path: Path, row: Any) -> None:
    """Add a line of JSON, so that it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as handle:
        # A torn last line must not swallow the next one.
        handle.seek(0, os.SEEK_END)
        torn = handle.tell() > 0
        if torn:
            handle.seek(-1, os.SEEK_END)
            torn = handle.read(1) != b"\n"
        line = json.dumps(row, separators=(",", ":")).encode()
        handle.write((b"\n" if torn else b"") + line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
