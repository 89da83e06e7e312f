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
from radistill.processes import gone, launched, speaks
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
    is a defect of ours. Of several processes that run one command, the first to end prints.
    """
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    # Whoever has Ctrl-C ignored, as a shell does for what runs in the background, keeps that.
    stops = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in stops}
    try:
        yield
        if sys.stdout is not None:  # it may have been closed
            sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        # A library in C may put an error of its own in the place of the exception that a signal has raised.
        if asked or isinstance(error, KeyboardInterrupt):
            number = asked[0] if asked else signal.SIGINT
            notes = _notes(error) or "; nothing was changed, and the same command starts again"
            _leave(f"{'ended by SIGTERM' if number == signal.SIGTERM else 'interrupted'}{notes}", 128 + number)
        if isinstance(error, RadistillError):
            _leave(f"error: {error}", 2)
        # Of a broken pipe nothing is said: whoever read our output has seen enough.
        if isinstance(error, BrokenPipeError) or (line := _known(error)) is None:
            raise
        _leave(f"error: {line}{_notes(error)}", 2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    if isinstance(error, RuntimeError) and launched() > 1 and "closed by peer" in str(error):
        return gone()
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
    if speaks():  # a launcher ends the others when one process has failed
        print(readable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)


def give_traceback() -> NoReturn:
    """As Python does, but for passwords in what a library says."""
    speaks()  # the others need not say that this process has ended
    print(readable(traceback.format_exc()), file=sys.stderr, end="")
    sys.exit(1)
