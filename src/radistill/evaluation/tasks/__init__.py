"""The tasks of `radistill evaluate --tasks`, one file each; a new one is a file and a line here."""

import difflib
from collections.abc import Callable

from radistill.errors import RadistillError
from radistill.evaluation.tasks import cruxeval, gsm8k, lm_eval, perplexity, reasoning_gym, recall, svamp
from radistill.evaluation.tasks.interface import Task

TASKS: dict[str, Task] = {
    task.name: task for module in (gsm8k, svamp, cruxeval, recall, perplexity) for task in module.TASKS
}
FAMILIES: dict[str, Callable[[str], Task]] = {"reasoning-gym": reasoning_gym.task, "lm-eval": lm_eval.task}


def task_of(name: str) -> Task:
    """The task of a name: one of `TASKS`, or `FAMILY:NAME` of one of `FAMILIES`.

    Raises:
        RadistillError: if there is none, or its package is missing.
    """
    family, colon, rest = name.partition(":")
    if colon and rest and family in FAMILIES:
        return FAMILIES[family](rest)
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join([*TASKS, *(f"{family}:NAME" for family in FAMILIES)])
        raise RadistillError(f"--tasks: no task {name!r}{hint} Known: {known}")
    return TASKS[name]
