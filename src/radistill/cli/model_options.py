"""What the commands that load a model have in common."""

from typing import Annotated

import typer

ModelSource = Annotated[str, typer.Argument(help="Hub id, folder, GGUF file or alias.", show_default=False)]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="Such as cpu or cuda:0.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
