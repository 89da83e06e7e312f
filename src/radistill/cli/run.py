"""`radistill run`, and a command for each of its stages."""

from collections.abc import Callable
from typing import Annotated

import typer

from radistill.cli.evaluate import evaluate
from radistill.cli.options import LATEST, By, Out, RecipePath, Set, by_override, recipe_of, run_stage
from radistill.cli.report import report
from radistill.cli.tradeoff import tradeoff

_QUICK = "Instead of a recipe, with --model, --data and --budget:"


def run(
    recipe: RecipePath = None,
    out: Out = LATEST,
    model: Annotated[str | None, typer.Option("--model", help=f"{_QUICK} hub id, folder, GGUF file or alias.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help=f"{_QUICK} a .jsonl file, a folder, a data set on the hub, or reasoning-gym:TASK."),
    ] = None,
    budget: Annotated[int | None, typer.Option("--budget", help=f"{_QUICK} attention layers to replace.")] = None,
    set_: Set = None,
    by: By = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and print an estimate of parameters, memory and tokens.")
    ] = False,
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

        print_estimate(estimate(settings, out))
        return
    from radistill.diagnosis.plan import Plan
    from radistill.pipeline.run import run as run_pipeline
    from radistill.processes import is_main
    from radistill.report.terminal import print_evaluation
    from radistill.runs.contents import read_content
    from radistill.runs.folder import RunFolder

    folder = run_pipeline(settings, out)
    if is_main():
        files = RunFolder(folder)
        print_evaluation(read_content(files.evaluation), drafter=Plan.load(files.hybrid().plan).whole_layers)


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
        str | None,
        typer.Option("--selector", metavar="NAME", help="How layers are chosen; `all` runs every one and ranks them."),
    ] = None,
    by: By = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes on this machine that search together, with `--by redundancy`. A search by several cannot "
            "be repeated exactly.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
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
