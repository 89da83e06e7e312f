"""`radistill inspect`: what a model is made of."""

import json
from typing import Annotated

from typer import Option, echo

from radistill.cli.options import ModelSource, TrustRemoteCode


def inspect(
    model: ModelSource,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a page.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a model's layers, parameters and memory, and whether a student target can hold it."""
    from radistill.console import show
    from radistill.conversion.inspection import inspect_source, render

    report = inspect_source(model, trust_remote_code)
    if as_json:
        echo(json.dumps(report, indent=2))
    else:
        show(render(report))
