"""A run in a process of its own that gets a signal at one of its writes."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill.cli.errors import errors_in_one_line
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe

WRITES = [(os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")]


def start(recipe: Path, out: Path, number: signal.Signals, at: int, after: bool) -> None:
    """Run the recipe, and send this process a signal right before or right after its write `at`, from 1.

    It ends with 0 when the run is done, and else as the command line does.
    """
    left = at

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            this = left == 0  # a write may be made of others
            if this and not after:
                os.kill(os.getpid(), number)
            try:
                return original(*arguments, **keywords)
            finally:  # some find nothing to remove
                if this and after:
                    os.kill(os.getpid(), number)

        return write

    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
    for module, name in WRITES:
        setattr(module, name, counted(getattr(module, name)))
    try:
        with errors_in_one_line():
            run(load_recipe(recipe), out)
    except SystemExit as leaving:
        os._exit(int(leaving.code or 0))
    os._exit(0)
