"""The lock of a folder that a command writes into, which keeps other processes out."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from radistill.errors import RadistillError
from radistill.processes import is_main

_KEPT = "what is done is kept"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; it is made if it is not there. The lock goes with the process, however that ends.
    Of several processes that run one command, the main one holds it for all.

    What ends the block early, be it Ctrl-C or a full disk, gets a note on what is kept, which the command line prints.

    Raises:
        RadistillError: if another process holds it, or no folder can be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RadistillError(f"{folder}: is a file; choose a folder with --out") from None
    except OSError as error:
        raise RadistillError(f"{folder}: no folder can be made there ({error.strerror}); choose --out") from None
    with _held(folder) if is_main() else nullcontext() as handle:
        if handle is not None:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        try:
            yield
        except BaseException as error:
            if not any(note.startswith(_KEPT) for note in getattr(error, "__notes__", ())):  # of a folder within it
                error.add_note(f"{_KEPT} in {folder}, and the same command goes on from there")
            raise


@contextmanager
def _held(folder: Path) -> Iterator[TextIO]:
    """The file that this process has locked, which is removed in the end; a kill may leave it, without the lock."""
    path = folder / ".lock"
    while True:
        with path.open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise RadistillError(
                    f"{folder}: another run (process {handle.read().strip() or 'unknown'}) is using this folder; "
                    "wait for it to end or choose another --out"
                ) from None
            try:
                if not os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                    continue
            except FileNotFoundError:  # whoever held it has removed it after it was opened here
                continue
            try:
                yield handle
            finally:
                with suppress(OSError):  # the folder may have gone
                    path.unlink()
            return
