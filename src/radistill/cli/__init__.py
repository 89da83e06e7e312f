"""The command line: thin commands over the library."""

import io
import os
import sys
import tempfile


def main() -> None:
    """Entry point: problems that the user can solve end with one line and exit code 2.

    Nothing is imported before it is called: Ctrl-C while that is done, which takes a moment, is answered as later.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every encoding has a bar or ×
    _find_temporary_folder()
    try:
        from radistill.cli.commands import app
        from radistill.cli.errors import give_traceback

        try:
            app()
        except Exception:
            give_traceback()
    except KeyboardInterrupt:
        print("interrupted; nothing was changed, and the same command starts again", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _open_closed_streams() -> None:
    """Where one was closed (`<&-`), a pipe of ours would get its number, and a process that we start would close it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (it stays open)


def _find_temporary_folder() -> None:
    """Libraries write to one when they are imported. Where all disks are read-only, there is one in memory."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = "/dev/shm"
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            tempfile.tempdir = "/tmp"  # few commands write there, and those say that they cannot
