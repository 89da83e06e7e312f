"""`radistill plan`: look at plans."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Typer

plan = Typer(help="Look at plans, and compare them.", no_args_is_help=True)


@plan.command("show")
def show(path: Annotated[Path, Argument(metavar="PLAN", help="A plan.json, or a run folder.")]) -> None:
    """Show what a plan replaces, what its draft is worth, and how it was found."""
    _print([path])


@plan.command("diff")
def diff(
    first: Annotated[Path, Argument(metavar="A", help="A plan.json, or a run folder.")],
    second: Annotated[Path, Argument(metavar="B", help="Another.")],
) -> None:
    """Show two plans side by side, with what differs marked."""
    _print([first, second])


def _print(paths: list[Path]) -> None:
    from radistill.console import show
    from radistill.diagnosis.plan import Plan
    from radistill.report.plan_table import plan_table
    from radistill.runs.folder import RunFolder

    files = [RunFolder(path).hybrid().plan if path.is_dir() else path for path in paths]
    # A plan may be compared with itself: the names are columns, so they must be apart.
    names = [str(file) if files.index(file) == at else f"{file} " for at, file in enumerate(files)]
    plans = {name: Plan.load(file) for name, file in zip(names, files, strict=True)}
    show(plan_table(plans))
