"""The tasks that a recipe asks of base and hybrid when the run is evaluated."""

from pathlib import Path

from radistill.console import note
from radistill.errors import RadistillError
from radistill.evaluation.results import Figures
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks import task_of
from radistill.evaluation.tasks.interface import Generated, Task, TaskSettings
from radistill.locks import locked
from radistill.models.loading import Model
from radistill.models.server.vllm import opened
from radistill.processes import Processes
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
        for field in ("limit", "contexts", "server"):
            if getattr(evaluate, field) is not None:
                raise RadistillError(f"evaluate.{field} is for evaluate.tasks, which names no task")
        return
    tasks, _ = tasks_of_recipe(recipe)
    if evaluate.server is not None and not any(isinstance(task, Generated) for task in tasks):
        raise RadistillError("evaluate.server is for tasks that let a model write, and evaluate.tasks names none")
    if context_length is not None and max(evaluate.contexts or [0]) >= context_length:
        raise RadistillError(
            f"evaluate.contexts: {max(evaluate.contexts or [0])} tokens and an answer are beyond the {context_length} "
            "tokens of this model"
        )


def ask(recipe: Recipe, model: Model, folder: Path, processes: Processes, *, is_base: bool) -> dict[str, Figures]:
    """Evaluate a model on the recipe's tasks, by its server if it has one; what it answered before lies in `folder`."""
    asked, settings = tasks_of_recipe(recipe)
    server = recipe.evaluate.server
    if server is not None and not server.starts_vllm and not is_base:
        note(f"evaluate.server: {server.url} is the base's, so {model.source} answers here")
        server = None
    with locked(folder), opened(server, model) as serving:
        return run_tasks(model, asked, settings, folder, replace=True, server=serving, processes=processes)
