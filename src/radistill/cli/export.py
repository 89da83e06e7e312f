"""`radistill export`: a student for transformers, vLLM or llama.cpp."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo


def export(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, or a folder with a model.", show_default=False)],
    to: Annotated[str, Option(help="hf: a folder with a model card. gguf: a file for llama.cpp.")],
    out: Annotated[Path, Option("--out", "-o", help="The folder or file to write.", show_default=False)],
    arm: Annotated[str, Option(help="Which hybrid of the run: the main one or an arm.")] = "hybrid",
    dtype: Annotated[
        str | None, Option(help="float32, float16, bfloat16, for gguf q8_0 too; left out, the model's own.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write the student of a run as a Hugging Face folder with a model card, or as a GGUF file that llama.cpp runs."""
    from radistill.export import export as write
    from radistill.texts import human_bytes, readable

    written = write(run, to, out, arm=arm, dtype=dtype, force=force)
    files = [written] if written.is_file() else [file for file in written.iterdir() if file.is_file()]
    echo(readable(f"{written}: {human_bytes(sum(file.stat().st_size for file in files))}"))
