"""A command line in one of several processes, which may be told to end badly at some point of its work.

torchrun --nproc-per-node 2 processes_case.py WHO WHAT AT ARGUMENTS: process WHO, at call AT from 1 of WHAT (`batch`,
`fit`, `pass`), is killed; with `-` nobody is. With `error` in place of `kill` before it, as in `error:fit`, it fails.
"""

import os
import signal
import sys
from typing import Any

from radistill.cli import main
from radistill.diagnosis.full_model import FullModel
from radistill.distillation import align
from radistill.errors import RadistillError
from radistill.models import generation

PLACES: dict[str, tuple[Any, str]] = {
    "batch": (generation, "_run"),
    "fit": (align, "fit_block"),
    "pass": (FullModel, "draft_pass"),
}


def end_badly(what: str, at: int) -> None:
    """Let the call `at` of `what` kill this process, or fail."""
    how, _, what = what.rpartition(":")
    place, name = PLACES[what]
    original, left = getattr(place, name), at

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and how == "error":
            raise RadistillError(f"{what} of process {os.environ['RANK']} has failed")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(place, name, counted)


if __name__ == "__main__":
    who, what, at, *arguments = sys.argv[1:]
    if who == os.environ.get("RANK", "0"):
        end_badly(what, int(at))
    sys.argv = ["radistill", *arguments]
    main()
