"""A promise of tasks: hybrids are trained by bisection until one keeps it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from radistill.console import note
from radistill.evaluation.comparison import compare_results, read_results
from radistill.files import write_json
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import promise_inputs
from radistill.pipeline.made import Stage, budget_of, most_layers, outputs_of, plan_of
from radistill.pipeline.steps import is_current, step_of
from radistill.pipeline.tasks import ask
from radistill.runs.arms import Arm
from radistill.runs.folder import MAIN


def keep_tasks(context: Context, limits: dict[str, float], train: Callable[[Arm], None]) -> None:
    """Train hybrids, from the largest that the trade-off allows down by bisection, until one keeps the tasks.

    It becomes the main hybrid, and the others are removed.

    Args:
        context: of the run.
        limits: by task, how much the share of right answers may fall, at most 0.
        train: chooses the layers of a hybrid, converts and trains it.
    """
    path, processes = context.folder.promise, context.processes
    inputs = processes.decide(partial(promise_inputs, context))
    if not is_current(context, "promise", inputs, [path]):
        with step_of(context, "promise", inputs, [path]) as replacing:
            candidates: list[dict[str, Any]] = []
            most = processes.decide(partial(most_layers, context))
            # Below a size that keeps the tasks every size is taken to keep them, and above one that does not none.
            holds, fails, size = 0, most + 1, most
            while fails - holds > 1:
                arm = _candidate(context, size)
                train(arm)
                candidates.append(_asked(context, arm, limits))
                holds, fails = (size, fails) if candidates[-1]["is_kept"] else (holds, size)
                size = (holds + fails) // 2
            if processes.is_main:
                replacing()
                write_json(path, {"keep": limits, "candidates": candidates, "budget": holds or None})
    processes.decide(partial(_take_over, context))


def _take_over(context: Context) -> None:
    """Make the candidate that keeps the promise the main hybrid, and remove the others."""
    main, chosen = context.hybrids[0], _candidate(context, budget_of(context, context.hybrids[0]))
    for stage in get_args(Stage):
        step = f"{stage}:{chosen.name}"
        if step in context.folder.steps:
            of, to = (outputs_of(context, arm, stage) for arm in (chosen, main))
            moved = list(zip(of, to, strict=True))
            context.folder.hand_over(step, f"{stage}:{MAIN}", moved, context.recipe.seed)
    for folder in context.folder.arms.glob(f"{_CANDIDATE}*"):
        for step in [step for step in context.folder.steps if step.endswith(f":{folder.name}")]:
            context.folder.forget(step, context.recipe.seed)
        shutil.rmtree(folder)


_CANDIDATE = "budget~"
"""What the name of a hybrid begins with that is trained to be asked the tasks of a promise: no arm can have it."""


def _candidate(context: Context, size: int) -> Arm:
    return replace(context.hybrids[0], name=f"{_CANDIDATE}{size}", budget=size)


def _asked(context: Context, arm: Arm, limits: dict[str, float]) -> dict[str, Any]:
    """How a trained hybrid does the tasks, beside the model."""
    folders = {"base": context.folder.tasks / "base", arm.name: context.files(arm).folder / "tasks"}
    models = {"base": context.base, arm.name: context.load(context.files(arm).student)}
    for name, folder in folders.items():
        ask(context.recipe, models[name], folder, context.processes, is_base=name == "base")
    return context.processes.decide(partial(_compared, context, arm, limits, folders))


def _compared(context: Context, arm: Arm, limits: dict[str, float], folders: dict[str, Path]) -> dict[str, Any]:
    lines = compare_results([read_results(name, folder) for name, folder in folders.items()])
    by_task = {line.task: line.differences[0] for line in lines if not line.group}
    found = {task: of for task in limits if (of := by_task.get(task)) is not None}
    points = [f"{task} {100 * of.difference:+.1f} points" for task, of in found.items()]
    note(f"promise: {arm.budget} layers replaced, {', '.join(points)}")
    return {
        "budget": arm.budget,
        "layers": plan_of(context, arm).replace,
        "tasks": {
            task: {"difference": of.difference, "interval": of.interval, "p": of.p, "n": of.n}
            for task, of in found.items()
        },
        "is_kept": all(task in found and found[task].difference >= limit for task, limit in limits.items()),
    }
