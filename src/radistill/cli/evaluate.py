"""`radistill evaluate`: a stage of a run, or any model on tasks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from radistill.cli.options import LATEST, Set, lengths, run_stage

if TYPE_CHECKING:
    from radistill.models.server.settings import ServerSettings


def _with_tasks(help: str, *flag: str, **settings: Any) -> Any:
    return Option(*flag, help=help, rich_help_panel="With --tasks", **settings)


def evaluate(
    subject: Annotated[
        str | None,
        Argument(
            metavar="[RECIPE|MODEL]",
            help="A recipe (left out, the run folder's own). With --tasks: a model, or a run folder for its base and "
            "its hybrid.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
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
            "Separated by commas: gsm8k, gsm8k-fewshot, svamp, cruxeval-o, cruxeval-i, recall, perplexity, "
            "reasoning-gym:NAME, lm-eval:NAME.",
            metavar="NAMES",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        _with_tasks("A file with a task's data, instead of the hub. Repeatable.", metavar="TASK=PATH"),
    ] = None,
    arms: Annotated[bool, _with_tasks("Of a run folder its arms too.", "--arms")] = False,
    limit: Annotated[int | None, _with_tasks("Examples of each task.", min=1)] = None,
    max_new_tokens: Annotated[int | None, _with_tasks("Longest answer.", min=1)] = None,
    batch_size: Annotated[int | None, _with_tasks("Answers generated at once; 16.", min=1)] = None,
    contexts: Annotated[str | None, _with_tasks("Of recall: lengths, as 128,512.", metavar="TOKENS")] = None,
    seed: Annotated[int | None, _with_tasks("Of generated examples; 0.", min=0)] = None,
    dtype: Annotated[str | None, _with_tasks("float32 (default), bfloat16 or float16.")] = None,
    device: Annotated[str | None, _with_tasks("cpu (default), cuda, …")] = None,
    server: Annotated[
        str | None,
        _with_tasks(
            "An OpenAI-compatible server of the model, which writes the answers; only the tokenizer is read here. "
            "Its key, if it wants one: RADISTILL_SERVER_KEY. `vllm` is started for it; if it has an environment of its "
            "own, RADISTILL_VLLM names the Python of that.",
            metavar="URL|vllm",
        ),
    ] = None,
    server_model: Annotated[
        str | None, _with_tasks("The model's name there, if it has several.", metavar="NAME")
    ] = None,
    trust_remote_code: Annotated[
        bool, _with_tasks("Run Python code that comes with the model.", "--trust-remote-code")
    ] = False,
) -> None:
    """Measure base, draft and hybrids on held-out data: evaluation.json. With --tasks: any model on benchmarks.

    What a model answers is kept, so an evaluation that was interrupted goes on where it was when the same command is
    given again. `radistill compare` sets several models side by side.
    """
    from radistill.errors import RadistillError

    def given(**options: Any) -> dict[str, Any]:
        return {field: value for field, value in options.items() if value is not None}

    chosen = given(
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        data=_paths(data) if data else None,
        contexts=lengths(contexts) if contexts else None,
    )
    loading, served = given(dtype=dtype, device=device), given(server=server, server_model=server_model)
    if tasks is None:
        flags = given(trust_remote_code=trust_remote_code or None, arms=arms or None)
        if odd := [f"--{field.replace('_', '-')}" for field in chosen | loading | served | flags]:
            raise RadistillError(f"evaluate: {', '.join(odd)} need --tasks; a run is evaluated as its recipe says")
        run_stage("evaluate", None if subject is None else Path(subject), out or LATEST, set_ or [])
        return
    if set_:
        raise RadistillError("evaluate: --set changes a recipe, and with --tasks there is none")
    if subject is None:
        raise RadistillError("evaluate: name the model, for example: radistill evaluate smollm2-135m --tasks recall")
    if server is None and server_model is not None:
        raise RadistillError("evaluate: --server-model names a model of --server, which is missing")
    if odd := [name for name in loading if server is not None and (name == "device" or server != "vllm")]:
        raise RadistillError(f"evaluate: --{odd[0]} is for a model that is loaded; a server has its own")
    _run_tasks(subject, out, arms, tasks, chosen, loading | {"trust_remote_code": trust_remote_code}, served)


def _run_tasks(
    subject: str,
    out: Path | None,
    arms: bool,
    names: str,
    chosen: dict[str, Any],
    loading: dict[str, Any],
    served: dict[str, str],
) -> None:
    from radistill.console import note, show
    from radistill.errors import RadistillError
    from radistill.evaluation.comparison import compare_results, read_results
    from radistill.evaluation.places import subjects_of
    from radistill.evaluation.run_tasks import check_written, run_tasks, tasks_of
    from radistill.evaluation.tasks.interface import TaskSettings
    from radistill.files import output_place
    from radistill.locks import locked
    from radistill.models.loading import load, load_config, load_tokenizer, load_without_weights
    from radistill.models.server.vllm import opened
    from radistill.processes import join, own_device
    from radistill.report.task_table import comparison_table, task_table

    settings = TaskSettings(**chosen)
    tasks = tasks_of([name.strip() for name in names.split(",") if name.strip()], settings)
    subjects = subjects_of(subject, out, arms=arms)
    where = _where(served, settings.batch_size) if served else None
    if where is not None:
        check_written(tasks)
        if len(subjects) > 1 and not where.starts_vllm:
            raise RadistillError(
                f"evaluate: {subject} is a run of several models, and --server serves one; name that, or vllm"
            )
    for one in subjects:
        output_place(one.folder, folder=True)
    for one in subjects:  # what is no model is refused before another one is evaluated
        (load_config if where is None else load_tokenizer)(one.model, loading["trust_remote_code"])
    loading["device"] = own_device(loading.get("device", "cpu"))
    processes = join(loading["device"].partition(":")[0])
    for one in subjects:
        with locked(one.folder):
            # Loaded one after the other: two models need not fit into memory at once.
            model = (
                load(one.model, **loading)
                if where is None
                else load_without_weights(
                    one.model, loading["trust_remote_code"], dtype=loading.get("dtype", "float32")
                )
            )
            with opened(where, model) as serving:
                figures = run_tasks(model, tasks, settings, one.folder, server=serving, processes=processes)
        note(f"{one.folder}: every answer of {one.name} is in TASK.jsonl, every figure in tasks.json")
        if processes.is_main:
            show(task_table(figures))
    if len(subjects) > 1 and processes.is_main:
        lines = compare_results([read_results(one.name, one.folder) for one in subjects])
        show(comparison_table([one.name for one in subjects], lines))


def _where(served: dict[str, str], requests: int) -> "ServerSettings":
    from pydantic import ValidationError

    from radistill.errors import RadistillError
    from radistill.models.server.settings import ServerSettings

    try:
        return ServerSettings(url=served["server"], model=served.get("server_model"), requests=requests)
    except ValidationError as error:
        raise RadistillError(f"--server: {error.errors()[0]['msg']}") from None


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
