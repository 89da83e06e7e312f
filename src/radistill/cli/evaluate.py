"""`radistill evaluate`: a stage of a run, or any model on tasks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from radistill.cli.options import LATEST, Set, lengths, recipe_of

_TASKS = "With --tasks"


def evaluate(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|MODEL]",
            help="A recipe (left out, the run folder's own). With --tasks: a model, or a run folder for its base and "
            "its hybrid.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="The run folder. With --tasks: where results go; left out, tasks/ of the run or evaluations/MODEL.",
            show_default=False,
        ),
    ] = None,
    set_: Set = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="Separated by commas: gsm8k, gsm8k-fewshot, svamp, cruxeval-o, cruxeval-i, recall, perplexity, "
            "reasoning-gym:NAME, lm-eval:NAME.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="TASK=PATH",
            help="A file with a task's data, instead of the hub. Repeatable.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    arms: Annotated[bool, typer.Option("--arms", help="Of a run folder its arms too.", rich_help_panel=_TASKS)] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Examples of each task.", rich_help_panel=_TASKS)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.", rich_help_panel=_TASKS)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Answers generated at once; 16.", rich_help_panel=_TASKS),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option("--contexts", metavar="TOKENS", help="Of recall: lengths, as 128,512.", rich_help_panel=_TASKS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of generated examples; 0.", rich_help_panel=_TASKS),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32 (default), bfloat16 or float16.", rich_help_panel=_TASKS),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu (default), cuda, …", rich_help_panel=_TASKS)
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=_TASKS),
    ] = False,
) -> None:
    """Measure base, draft and hybrids on held-out data: evaluation.json. With --tasks: any model on benchmarks.

    What a model answers is kept, so an evaluation that was interrupted goes on where it was when the same command is
    given again. `radistill compare` sets several models side by side.
    """
    from radistill.errors import RadistillError

    given = {
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "data": _paths(data) if data else None,
        "contexts": lengths(contexts) if contexts else None,
    }
    chosen = {field: value for field, value in given.items() if value is not None}
    loading = {field: value for field, value in {"dtype": dtype, "device": device}.items() if value is not None}
    if tasks is None:
        if odd := [f"--{field.replace('_', '-')}" for field in [*chosen, *loading]] + (
            (["--trust-remote-code"] if trust_remote_code else []) + (["--arms"] if arms else [])
        ):
            raise RadistillError(f"evaluate: {', '.join(odd)} need --tasks; a run is evaluated as its recipe says")
        _run_stage(subject, out or LATEST, set_ or [])
        return
    if set_:
        raise RadistillError("evaluate: --set changes a recipe, and with --tasks there is none")
    if subject is None:
        raise RadistillError("evaluate: name the model, for example: radistill evaluate smollm2-135m --tasks recall")
    _run_tasks(subject, out, arms, tasks, chosen, loading | {"trust_remote_code": trust_remote_code})


def _run_stage(recipe: str | None, out: Path, overrides: list[str]) -> None:
    from radistill.pipeline.run import run as run_pipeline
    from radistill.runs.recipe import load_recipe

    run_pipeline(load_recipe(recipe_of(None if recipe is None else Path(recipe), out), overrides), out, ["evaluate"])


def _run_tasks(
    subject: str, out: Path | None, arms: bool, names: str, chosen: dict[str, Any], loading: dict[str, Any]
) -> None:
    from rich.console import Console

    from radistill.console import note
    from radistill.evaluation.comparison import compare_results, read_results
    from radistill.evaluation.places import subjects_of
    from radistill.evaluation.run_tasks import run_tasks, tasks_of
    from radistill.evaluation.tasks.interface import TaskSettings
    from radistill.models.loading import load
    from radistill.report.task_table import comparison_table, task_table

    settings = TaskSettings(**chosen)
    tasks = tasks_of([name.strip() for name in names.split(",") if name.strip()], settings)
    subjects = subjects_of(subject, out, arms=arms)
    console = Console(highlight=False)
    for one in subjects:
        # Loaded one after the other: two models need not fit into memory at once.
        figures = run_tasks(load(one.model, **loading), tasks, settings, one.folder)
        note(f"{one.folder}: every answer of {one.name} is in TASK.jsonl, every figure in tasks.json")
        console.print(task_table(figures))
    if len(subjects) > 1:
        lines = compare_results([read_results(one.name, one.folder) for one in subjects])
        console.print(comparison_table([one.name for one in subjects], lines))


def _paths(data: list[str]) -> dict[str, Path]:
    from radistill.errors import RadistillError

    found = {}
    for text in data:
        # A task's name may hold a colon, but no equals sign.
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise RadistillError(f"--data {text!r}: must be TASK=PATH, as gsm8k=test.jsonl")
        found[name] = Path(path).expanduser()
    return found
