"""A step of a run: done before or not, and recorded when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.pipeline.context import Context

_SECTIONS = {
    "data": ("model", "teacher", "seed", "threads", "dtype", "device", "trust_remote_code", "data"),
    "tradeoff": ("diagnose",),
    "promise": ("diagnose",),
    "diagnose": ("diagnose",),
    "convert": ("convert",),
    "distill": ("align", "distill"),
    "finetune": ("finetune",),
    "evaluate": ("evaluate",),
}
"""What of a recipe each stage of the main hybrid is made with. Its own data is in the section that reads it."""


def is_current(context: Context, step: str, inputs: Any, outputs: list[Path]) -> bool:
    """`says_current` of the main process; all must ask for it together."""
    return context.processes.decide(lambda: says_current(context, step, inputs, outputs))


def says_current(context: Context, step: str, inputs: Any, outputs: list[Path]) -> bool:
    """Whether a step was finished with these inputs and what it left is there; it is said either way."""
    is_done = context.folder.is_current(step, inputs, outputs)
    note(f"[{step}] " + ("done before, inputs unchanged" if is_done else "…"))
    return is_done


@contextmanager
def step_of(context: Context, step: str, inputs: Any, outputs: list[Path], **told: str) -> Iterator[Callable[[], None]]:
    """Record a step and the recipe when the block ends well, see `RunFolder.step`; the main process does.

    A recipe that is refused does not take the place of the one that made what is there.
    """
    if not context.processes.is_main:
        yield lambda: None
        return
    if not context.folder.recipe.exists():  # for whoever goes on after a kill
        context.recipe.save(context.folder.recipe)
    stage, _, name = step.partition(":")
    recipe = context.recipe.model_dump(mode="json")
    if name in recipe["arms"]:
        made_with: dict[str, Any] = {"arms": {name: recipe["arms"][name]}}
    else:
        made_with = {} if name in recipe and stage == "data" else {one: recipe[one] for one in _SECTIONS[stage]}
    with context.folder.step(step, inputs, outputs, recipe=made_with, seed=context.recipe.seed, **told) as replacing:
        yield replacing
    context.recipe.save(context.folder.recipe)
