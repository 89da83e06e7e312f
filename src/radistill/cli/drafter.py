"""`radistill drafter`: draft models for speculative decoding."""

import typer

from radistill.cli.run import run

drafter = typer.Typer(help="Draft models for speculative decoding.", no_args_is_help=True)
drafter.command("train", help="Run the recipe of a drafter; the same as `radistill run`.")(run)
