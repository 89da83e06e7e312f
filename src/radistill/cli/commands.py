"""All commands, by their names."""

import os
from typing import Any

# Before torch is imported: threads that wait actively starve each other wherever a core is shared with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before transformers is imported: what its warnings would say here (a kernel that only a GPU could use) is in our docs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from typer.core import TyperGroup

from radistill.cli.compare import compare
from radistill.cli.components import components
from radistill.cli.drafter import drafter
from radistill.cli.errors import errors_in_one_line
from radistill.cli.export import export
from radistill.cli.generate import generate
from radistill.cli.inspect import inspect
from radistill.cli.plan import plan
from radistill.cli.recipes import demo, recipes
from radistill.cli.run import STAGE_COMMANDS, run
from radistill.cli.savings import savings


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with errors_in_one_line():  # in here, because Typer leaves without a word on Ctrl-C
            return super().invoke(ctx)


app = typer.Typer(
    name="radistill",
    cls=_Commands,
    help="Turn a Transformer into a hybrid: find the attention layers that it can do without, replace them with "
    "state-space layers, distil, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        typer.echo(f"radistill {installed('radistill')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, help="Print the version and leave."),
) -> None:
    pass


app.command("demo")(demo)
app.command("run")(run)
for _name, _command in STAGE_COMMANDS.items():
    app.command(_name, rich_help_panel="Stages of a run")(_command)
app.command("recipes")(recipes)
app.command("inspect")(inspect)
app.command("components")(components)
app.command("compare")(compare)
app.command("savings")(savings)
app.add_typer(plan, name="plan")
app.add_typer(drafter, name="drafter")
app.command("generate")(generate)
app.command("export")(export)
