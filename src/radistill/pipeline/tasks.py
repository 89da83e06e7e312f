"""The tasks that a recipe asks of base and hybrid when the run is evaluated."""

from pathlib import Path

from radistill.errors import RadistillError
from radistill.evaluation.figures import Figures
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks import task_of
from radistill.evaluation.tasks.interface import Generated, Task, TaskSettings
from radistill.locks import locked
from radistill.models.loading import Model
from radistill.runs.recipe import Recipe


def tasks_of_recipe(recipe: Recipe) -> tuple[list[Task], TaskSettings]:
    """The recipe's tasks, and how they are run.

    Raises:
        RadistillError: for an unknown task, one that is named twice, or `contexts` without recall.
    """
    evaluate = recipe.evaluate
    contexts = None if evaluate.contexts is None else tuple(evaluate.contexts)
    settings = TaskSettings(limit=evaluate.limit, batch_size=evaluate.batch_size, contexts=contexts, seed=recipe.seed)
    try:
        return tasks_of(evaluate.tasks, settings), settings
    except RadistillError as error:
        said = str(error).removeprefix("--tasks: ").replace("--contexts", "contexts").replace("--tasks", "tasks")
        raise RadistillError(f"evaluate.tasks: {said}") from None


def check_tasks(recipe: Recipe, context_length: int | None) -> None:
    """Refuse what the evaluation would refuse, before anything is computed for it.

    Args:
        recipe: of the run.
        context_length: tokens that the base can read; None is any number.

    Raises:
        RadistillError: as `tasks_of_recipe`, and for a length of recall's texts beyond the model's context.
    """
    evaluate, keep = recipe.evaluate, recipe.diagnose.keep
    for name in keep.tasks if keep is not None else ():
        if name not in evaluate.tasks:
            raise RadistillError(f"diagnose.keep.tasks: {name} is not among evaluate.tasks; add it there")
        if not isinstance(task_of(name), Generated):
            raise RadistillError(f"diagnose.keep.tasks: {name} has no right answers that could be counted")
    if not evaluate.tasks:
        if evaluate.limit is not None or evaluate.contexts is not None:
            raise RadistillError("evaluate.limit and evaluate.contexts are for evaluate.tasks, which names no task")
        return
    tasks_of_recipe(recipe)
    if context_length is not None and max(evaluate.contexts or [0]) >= context_length:
        raise RadistillError(
            f"evaluate.contexts: {max(evaluate.contexts or [0])} tokens and an answer are beyond the {context_length} "
            "tokens of this model"
        )


def ask(recipe: Recipe, model: Model, folder: Path) -> dict[str, Figures]:
    """Evaluate a model on the recipe's tasks; what it answered before lies in `folder`."""
    asked, settings = tasks_of_recipe(recipe)
    with locked(folder):
        return run_tasks(model, asked, settings, folder, replace=True)
