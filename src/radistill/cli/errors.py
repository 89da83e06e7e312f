"""From exceptions to one line and an exit code."""

import errno
import os
import re
import signal
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from radistill.errors import RadistillError
from radistill.files import TEMPORARY
from radistill.texts import readable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
# What libraries in Rust (safetensors, tokenizers) say instead of raising OSError.
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_OF_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "attempt to write a readonly database": errno.EROFS,
}


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what the user can solve as one line, and exit: 2 for a problem, 130 for Ctrl-C, 143 for SIGTERM.

    SIGTERM, which a cluster sends before it kills, ends the block as Ctrl-C does. Anything else keeps its traceback: it
    is a defect of ours.
    """
    stopped, code = "interrupted", 130

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal stopped, code
        stopped, code = "ended by SIGTERM", 128 + number
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
        if sys.stdout is not None:  # it may have been closed
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        notes = _notes(stop) or "; nothing was changed, and the same command starts again"
        _leave(f"{stopped}{notes}", code)
    except RadistillError as error:
        _leave(f"error: {error}", 2)
    except BrokenPipeError:
        raise  # whoever read our output has seen enough
    except Exception as error:
        line = _known(error)
        if line is None:
            raise
        _leave(f"error: {line}{_notes(error)}", 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _notes(error: BaseException) -> str:
    """What those whom the exception passed have to say of what is kept, and where."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _known(error: BaseException) -> str | None:
    """Failures of the machine that a user can do something about, also those that a library has wrapped."""
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error.errno, error.filename)
    if type(error).__name__ == "OutOfMemoryError":
        return "out of memory on the GPU; lower tokens_per_batch or batch_size in the recipe"
    if found := _OF_RUST.search(str(error)):
        return _of_the_system(int(found[1]), None)
    if isinstance(error, sqlite3.Error) and str(error) in _OF_SQLITE:
        return _of_the_system(_OF_SQLITE[str(error)], None)
    return _known(error.__cause__) if error.__cause__ is not None else None


def _of_the_system(number: int, filename: str | bytes | None) -> str:
    way_out = ""
    if number in _NO_ROOM:
        way_out = "; make room or choose another folder"
    elif number in _NO_ACCESS:
        way_out = "; choose a place where you may read and write, or change who may"
    return (f"{_place(filename)}: " if filename else "") + os.strerror(number) + way_out


def _place(filename: str | bytes) -> Path:
    """The file; of one that has a temporary name of ours, the folder that it is written into."""
    path = Path(os.fsdecode(filename))
    return next((at.parent for at in [path, *path.parents] if TEMPORARY.fullmatch(at.name)), path)


def _leave(message: str, code: int) -> None:
    print(readable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)


def give_traceback() -> NoReturn:
    """As Python does, but for passwords in what a library says."""
    print(readable(traceback.format_exc()), file=sys.stderr, end="")
    sys.exit(1)
