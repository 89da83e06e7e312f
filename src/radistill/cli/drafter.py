"""`radistill drafter`: what measures and checks another model that drafts."""

import typer

from radistill.cli.drafter_check import check
from radistill.cli.drafter_measure import measure

drafter = typer.Typer(
    help="Another model that drafts for a target: what it is worth, and whether engines serve both.",
    no_args_is_help=True,
)
drafter.command("measure")(measure)
drafter.command("check")(check)
