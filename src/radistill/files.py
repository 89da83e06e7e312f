"""Files that are never half written: everything lands under a temporary name and is renamed when complete."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from radistill.errors import RadistillError


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old content or the new, also after a kill."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def write_json(path: Path | str, data: Any) -> None:
    """Write `data` as indented JSON, atomically. NaN and infinities are refused, because other readers refuse them."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_lines(path: Path, way_out: str = "") -> list[str]:
    """The lines of a UTF-8 text: what line feeds part, because texts in JSON hold other line separators.

    Raises:
        RadistillError: if the file is missing, cannot be read or is not UTF-8; its message ends with `way_out`.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise RadistillError(f"{path}: no such file{way_out}") from None
    except UnicodeDecodeError as error:
        raise RadistillError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}){way_out}") from None
    except OSError as error:
        raise RadistillError(f"{path}: cannot be read ({error.strerror}){way_out}") from None


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        RadistillError: if the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RadistillError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RadistillError(f"{path}: not valid JSON ({error})") from None


def hash_json(data: Any) -> str:
    """SHA-256 of the canonical JSON form of `data` (sorted keys, no white space)."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")


def _beside(path: Path, use: str = "new") -> Path:
    """A hidden name in the same folder, of this process; short, because `path` may be as long as a name can be."""
    return path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.{use}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A name for a file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends well, and vanishes when it does not.

    A link stays a link: what it points to is replaced, on the disk where that lies.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        move_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder to `target`. One that is there goes aside first and is removed last: whoever looks, or is killed,
    sees the old folder, the new one or, between two renames, none, but never half of one."""
    aside = _beside(target, "old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that processes which are gone have left anywhere in `folder`."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = _TEMPORARY.fullmatch(name)
            if found is None or psutil.pid_exists(int(found[1])):
                continue
            if name in folders:
                folders.remove(name)
                shutil.rmtree(Path(place, name), ignore_errors=True)
            else:
                Path(place, name).unlink(missing_ok=True)
