"""`radistill tradeoff`: what a model keeps for every number of attention layers that may go."""

from pathlib import Path
from typing import Annotated

import typer

from radistill.cli.options import LATEST, Set, recipe_of


def tradeoff(
    run: Annotated[Path, typer.Argument(metavar="[RUN]", help="The run folder.", show_default=False)] = LATEST,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="RECIPE", help="Left out, the run folder's own.", show_default=False),
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
