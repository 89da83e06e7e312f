"""`radistill run`, and a command for each of its stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from radistill.cli.evaluate import evaluate
from radistill.cli.options import LATEST, By, Out, RecipePath, Set, by_override, recipe_of, run_stage

_QUICK = "Instead of a recipe, with --model, --data and --budget:"


def run(
    recipe: RecipePath = None,
    out: Out = LATEST,
    model: Annotated[str | None, Option(help=f"{_QUICK} hub id, folder, GGUF file or alias.")] = None,
    data: Annotated[
        str | None, Option(help=f"{_QUICK} a .jsonl file, a folder, a data set on the hub, or reasoning-gym:TASK.")
    ] = None,
    budget: Annotated[int | None, Option(help=f"{_QUICK} attention layers to replace.")] = None,
    set_: Set = None,
    by: By = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check the recipe; print an estimate of parameters, memory and time.")
    ] = False,
    processes: Annotated[int | None, Option(min=1, help="With --dry-run: how many are to share the work.")] = None,
) -> None:
    """Run a recipe: data, diagnose, convert, distill, finetune, evaluate, report.

    Without a recipe, give --model, --data and --budget: defaults stand for the rest, and the run folder keeps the whole
    recipe.

    A run that was interrupted goes on where it was when the same command is given again; after a change of the recipe
    only the stages that it touches are run.
    """
    from radistill.errors import RadistillError
    from radistill.runs.recipe import load_recipe, recipe_for

    overrides = [*(set_ or []), *by_override(by)]
    if model is None and data is None and budget is None:
        settings = load_recipe(recipe_of(recipe, out), overrides)
    elif model is None or data is None or budget is None or recipe is not None:
        raise RadistillError("run: give either a recipe, or --model, --data and --budget together")
    else:
        settings = recipe_for(model, data, budget, overrides)
    if dry_run:
        from radistill.pipeline.estimate import estimate
        from radistill.pipeline.estimate_page import print_estimate

        print_estimate(estimate(settings, out, processes or 1))
        return
    if processes is not None:
        raise RadistillError(
            "--processes is for --dry-run; to run in several, start the command with torchrun or accelerate launch"
        )
    from radistill.diagnosis.plan import Plan
    from radistill.pipeline.run import run as run_pipeline
    from radistill.processes import is_main
    from radistill.report.terminal import print_evaluation
    from radistill.runs.contents import read_content
    from radistill.runs.folder import RunFolder
    from radistill.runs.read import kind_of

    folder = run_pipeline(settings, out)
    if is_main():
        files = RunFolder(folder)
        print_evaluation(read_content(files.evaluation), kind_of(Plan.load(files.hybrid().plan)))


def _stage_command(stage: str, explanation: str) -> Callable[..., None]:
    def command(recipe: RecipePath = None, out: Out = LATEST, set_: Set = None) -> None:
        run_stage(stage, recipe, out, set_ or [])

    command.__doc__ = explanation
    return command


def diagnose(
    recipe: RecipePath = None,
    out: Out = LATEST,
    set_: Set = None,
    selector: Annotated[
        str | None, Option(metavar="NAME", help="How layers are chosen; `all` runs every one and ranks them.")
    ] = None,
    by: By = None,
    workers: Annotated[
        int | None,
        Option(
            min=1,
            help="Processes on this machine that share the Bayesian search. A search by several cannot be repeated "
            "exactly.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="Optuna storage that other machines share, as sqlite:////shared/study.db; the same command joins.",
        ),
    ] = None,
) -> None:
    """Choose the attention layers that are to be replaced: plan.json."""
    from radistill.errors import RadistillError
    from radistill.runs.recipe import load_recipe

    given = {"workers": workers, "storage": storage}
    chosen = [*(set_ or []), *([] if selector is None else [f"diagnose.selector={selector}"]), *by_override(by)]
    shared = [f"diagnose.selector.{field}={value}" for field, value in given.items() if value is not None]
    if shared and (kind := load_recipe(recipe_of(recipe, out), chosen).diagnose.selector.kind) != "bayes":
        raise RadistillError(
            f"diagnose.selector is {kind}, which searches in one process; --workers and --storage are for the "
            "Bayesian search: add --selector bayes"
        )
    run_stage("diagnose", recipe, out, [*chosen, *shared])


def tradeoff(
    run: Annotated[Path, Argument(metavar="[RUN]", help="The run folder.", show_default=False)] = LATEST,
    recipe: Annotated[
        Path | None,
        Option(metavar="RECIPE", help="Left out, the run folder's own.", show_default=False),
    ] = None,
    set_: Set = None,
) -> None:
    """Find the best layers for every budget at once, and measure what each keeps: tradeoff.json, and a table.

    For each number of attention layers that go: KL, accepted drafts and recall on held-out texts with 95 % intervals,
    and the cache. The drafts have fitted blocks in place of attention, without distillation (`diagnose.by`).
    """
    from radistill.console import show
    from radistill.files import read_json
    from radistill.pipeline.run import run as run_pipeline
    from radistill.processes import is_main
    from radistill.report.tradeoff_table import tradeoff_table
    from radistill.runs.contents import TradeOff
    from radistill.runs.folder import RunFolder
    from radistill.runs.recipe import load_recipe

    settings = load_recipe(recipe_of(recipe, run), [*(set_ or []), "diagnose.tradeoff=true"])
    folder = RunFolder(run_pipeline(settings, run, ["data", "tradeoff"]))
    if is_main():
        show(tradeoff_table(read_json(folder.tradeoff, TradeOff)))


def report(recipe: RecipePath = None, out: Out = LATEST, set_: Set = None) -> None:
    """Write report.html from what the run folder holds."""
    from radistill.console import note
    from radistill.locks import locked
    from radistill.report.page import write_report

    if recipe is not None or set_:
        run_stage("report", recipe, out, set_ or [])
        return
    recipe_of(None, out)
    with locked(out):
        note(f"report: {write_report(out)}")


_STAGES: dict[str, str | Callable[..., None]] = {
    "data": "Prepare training, calibration and held-out examples; the teacher writes missing responses.",
    "tradeoff": tradeoff,
    "diagnose": diagnose,
    "convert": "Build the hybrid that the plan describes: start/.",
    "distill": "Fit the new blocks and train the hybrid: student/.",
    "finetune": "Train the distilled hybrid on response tokens, where the recipe has a section for it.",
    "evaluate": evaluate,
    "report": report,
}
STAGE_COMMANDS = {stage: _stage_command(stage, of) if isinstance(of, str) else of for stage, of in _STAGES.items()}
