"""Running a recipe, whole or stage by stage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from radistill.errors import RadistillError
from radistill.files import remove_leftovers
from radistill.locks import locked
from radistill.pipeline.context import Context
from radistill.pipeline.stages import STAGES
from radistill.provenance import seed_everything
from radistill.runs.recipe import Recipe, recipe_for

_STAGE_OF = {"connect": "distill"}
"""Of a training that is no stage of its own, the one that it is part of."""


def hybridize(model: str, data: str, *, budget: int, out: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Turn a model into a hybrid with the recipe of defaults, which the run folder keeps; see `run`.

    Args:
        model: hub id, folder, GGUF file or alias.
        data: prompts, with or without responses: a `.jsonl` file, a data set, or `reasoning-gym:TASK`.
        budget: attention layers to replace.
        out: the run folder; its `student` is the hybrid.
        overrides: fields of the recipe, such as `distill.steps=20`.

    Raises:
        RadistillError: on whatever is wrong with model, data or settings.
    """
    return run(recipe_for(model, data, budget, overrides), out)


def run(recipe: Recipe, out: Path | str, stages: Sequence[str] = tuple(STAGES)) -> Path:
    """Run the named stages of a recipe in a folder.

    A run that was interrupted, however that came about, goes on where it was, also with another number of processes; a
    stage whose inputs have not changed is not run again. Of several processes that torchrun or `accelerate launch` has
    started, all run the same stages and share what takes long.

    Args:
        recipe: what to do.
        out: the run folder; made if it does not exist.
        stages: names in `STAGES`, in order.

    Raises:
        RadistillError: if the folder is in use, a stage is unknown, or a stage cannot do its work.
    """
    for stage in stages:
        if stage not in STAGES:
            raise RadistillError(f"stage {stage!r} is unknown; stages are {', '.join(STAGES)}")
    seed_everything(recipe.seed, recipe.threads)
    context = Context(recipe, Path(out))
    processes = context.processes
    for arm in context.hybrids:
        for training in arm.trainings:
            if _STAGE_OF.get(training.section, training.section) in stages:
                training.check_processes(processes.count, processes.sharded)
    with locked(context.folder.path):
        processes.decide(partial(remove_leftovers, context.folder.path))
        for stage in stages:
            try:
                STAGES[stage](context)
            except BaseException as error:
                error.add_note(f"the stage {stage} is unfinished")
                raise
            processes.wait()
    return context.folder.path
