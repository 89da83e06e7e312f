"""`radistill drafter`: what makes, measures and checks a drafter."""

import typer

from radistill.cli.drafter_measure import measure

drafter = typer.Typer(help="Another model that drafts for a target: what it is worth, and whether engines serve both.")
drafter.command("measure")(measure)
