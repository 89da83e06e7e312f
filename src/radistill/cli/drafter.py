"""`radistill drafter`: what makes, measures and checks another model that drafts."""

import typer

from radistill.cli.drafter_check import check
from radistill.cli.drafter_measure import measure
from radistill.cli.run import run

drafter = typer.Typer(
    help="Another model that drafts for a target: train one, say what it is worth, check that engines serve both.",
    no_args_is_help=True,
)
drafter.command("train", help="Run the recipe of a drafter; the same as `radistill run`.")(run)
drafter.command("measure")(measure)
drafter.command("check")(check)
