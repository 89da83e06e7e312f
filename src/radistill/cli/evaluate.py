"""`radistill evaluate`: a stage of a run, or any model on tasks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from radistill.cli.options import LATEST, Set, lengths, run_stage


def _with_tasks(flag: str, help: str, **settings: Any) -> Any:
    return typer.Option(flag, help=help, rich_help_panel="With --tasks", **settings)


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
        _with_tasks(
            "--tasks",
            "Separated by commas: gsm8k, gsm8k-fewshot, svamp, cruxeval-o, cruxeval-i, recall, perplexity, "
            "reasoning-gym:NAME, lm-eval:NAME.",
            metavar="NAMES",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        _with_tasks("--data", "A file with a task's data, instead of the hub. Repeatable.", metavar="TASK=PATH"),
    ] = None,
    arms: Annotated[bool, _with_tasks("--arms", "Of a run folder its arms too.")] = False,
    limit: Annotated[int | None, _with_tasks("--limit", "Examples of each task.", min=1)] = None,
    max_new_tokens: Annotated[int | None, _with_tasks("--max-new-tokens", "Longest answer.", min=1)] = None,
    batch_size: Annotated[int | None, _with_tasks("--batch-size", "Answers generated at once; 16.", min=1)] = None,
    contexts: Annotated[
        str | None, _with_tasks("--contexts", "Of recall: lengths, as 128,512.", metavar="TOKENS")
    ] = None,
    seed: Annotated[int | None, _with_tasks("--seed", "Of generated examples; 0.", min=0)] = None,
    dtype: Annotated[str | None, _with_tasks("--dtype", "float32 (default), bfloat16 or float16.")] = None,
    device: Annotated[str | None, _with_tasks("--device", "cpu (default), cuda, …")] = None,
    trust_remote_code: Annotated[
        bool, _with_tasks("--trust-remote-code", "Run Python code that comes with the model.")
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
        run_stage("evaluate", None if subject is None else Path(subject), out or LATEST, set_ or [])
        return
    if set_:
        raise RadistillError("evaluate: --set changes a recipe, and with --tasks there is none")
    if subject is None:
        raise RadistillError("evaluate: name the model, for example: radistill evaluate smollm2-135m --tasks recall")
    _run_tasks(subject, out, arms, tasks, chosen, loading | {"trust_remote_code": trust_remote_code})


def _run_tasks(
    subject: str, out: Path | None, arms: bool, names: str, chosen: dict[str, Any], loading: dict[str, Any]
) -> None:
    from radistill.console import note, show
    from radistill.evaluation.comparison import compare_results, read_results
    from radistill.evaluation.places import subjects_of
    from radistill.evaluation.run_tasks import run_tasks, tasks_of
    from radistill.evaluation.tasks.interface import TaskSettings
    from radistill.files import output_place
    from radistill.locks import locked
    from radistill.models.loading import load, load_config
    from radistill.report.task_table import comparison_table, task_table

    settings = TaskSettings(**chosen)
    tasks = tasks_of([name.strip() for name in names.split(",") if name.strip()], settings)
    subjects = subjects_of(subject, out, arms=arms)
    for one in subjects:
        output_place(one.folder, folder=True)
    for one in subjects:  # what is no model is refused before another one is evaluated
        load_config(one.model, loading["trust_remote_code"])
    for one in subjects:
        with locked(one.folder):
            # Loaded one after the other: two models need not fit into memory at once.
            figures = run_tasks(load(one.model, **loading), tasks, settings, one.folder)
        note(f"{one.folder}: every answer of {one.name} is in TASK.jsonl, every figure in tasks.json")
        show(task_table(figures))
    if len(subjects) > 1:
        lines = compare_results([read_results(one.name, one.folder) for one in subjects])
        show(comparison_table([one.name for one in subjects], lines))


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
