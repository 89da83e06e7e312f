"""From exceptions to one line and an exit code."""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from radistill.errors import RadistillError
from radistill.texts import readable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what the user can solve as one line, and exit: 2 for a problem, 130 for Ctrl-C.

    Anything else keeps its traceback: it is a defect of ours.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave("interrupted; what is finished is kept, and the same command goes on from there", 130)
    except RadistillError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:
        # Where a file is named, it is a place of the user's, which changes or fails at any time: no check sees it all.
        if error.errno not in _NO_ROOM and not isinstance(error, PermissionError) and not error.filename:
            _give_traceback()
        where = f"{error.filename}: " if error.filename else ""
        way_out = "make room or choose another folder, then give the same command again"
        _leave(f"error: {where}{error.strerror or type(error).__name__}; {way_out}", 2)
    except Exception as error:
        line = _known(error)
        if line is None:
            _give_traceback()
        _leave(f"error: {line}", 2)


def _known(error: Exception) -> str | None:
    """Failures of libraries that a user can do something about."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "SafetensorError" and ("No space left" in text or "File too large" in text):
        return f"{text}; make room or choose another folder, then give the same command again"
    if type(error).__name__ == "OutOfMemoryError":
        return "out of memory on the GPU; lower tokens_per_batch or batch_size in the recipe"
    return None


def _leave(message: str, code: int) -> None:
    print(readable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)


def _give_traceback() -> NoReturn:
    """As Python does, but for passwords in what a library says."""
    print(readable(traceback.format_exc()), file=sys.stderr, end="")
    sys.exit(1)
