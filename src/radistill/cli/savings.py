"""`radistill savings`: cache, speed and memory of a base and its hybrid."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from radistill.cli.options import Device, TrustRemoteCode, lengths


def savings(
    base: Annotated[str, Argument(metavar="RUN|BASE", help="A run folder, or a base model.", show_default=False)],
    hybrid: Annotated[
        str | None, Argument(help="Not for a run folder: the hybrid beside the base.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, Option("--out", "-o", metavar="FILE", help="Left out, savings.json of the run, or here.")
    ] = None,
    contexts: Annotated[str | None, Option(metavar="TOKENS", help="Lengths, as 512,4096,16384.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Sequences at once.")] = 1,
    decode_tokens: Annotated[int, Option(min=2, help="Decoding steps at each length.")] = 32,
    repeats: Annotated[int, Option(min=1, help="Timed passes, of which the median counts.")] = 3,
    draft_length: Annotated[int, Option(min=0, help="Of self-speculation; 0 leaves it out.")] = 4,
    engine: Annotated[
        str, Option(help="transformers, vllm, or llama.cpp, for which both are written as GGUF.")
    ] = "transformers",
    vllm: Annotated[
        Path | None,
        Option(metavar="PYTHON", envvar="RADISTILL_VLLM", help="Of the environment that has vLLM; left out, this one."),
    ] = None,
    beyond_context: Annotated[
        bool, Option("--beyond-context", help="Time contexts beyond the models' own; text there means nothing.")
    ] = False,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16; for llama.cpp q8_0 too.")] = "float32",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure what a hybrid saves: its cache, and prefill, decoding and peak memory over context length.

    Base and hybrid are measured in turns, in one process. Turns that the file holds already count.
    """
    import sys
    import tempfile
    from contextlib import ExitStack

    from radistill.console import note, show
    from radistill.errors import RadistillError
    from radistill.evaluation.places import subjects_of
    from radistill.evaluation.savings.measure import Engine, SavingsSettings, Transformers, measure_savings
    from radistill.export.engines.llama_cpp import LlamaCppEngine
    from radistill.export.engines.vllm import VllmEngine
    from radistill.files import output_place
    from radistill.locks import locked
    from radistill.models.loading import load
    from radistill.report.savings import savings_tables
    from radistill.runs.folder import RunFolder

    sources = [subject.model for subject in subjects_of(base)] + ([] if hybrid is None else [hybrid])
    if len(sources) != 2:
        raise RadistillError("savings: name a run folder alone, or a base model and a hybrid")
    if engine not in ("transformers", "llama.cpp", "vllm"):
        raise RadistillError(f"savings: --engine is {engine!r}; it can be transformers, llama.cpp or vllm")
    if engine == "vllm" and dtype not in ("float32", "bfloat16", "float16"):
        raise RadistillError(f"savings: --dtype is {dtype!r}; vLLM takes float32, bfloat16 or float16")
    own = engine == "transformers"
    settings = SavingsSettings(
        contexts=None if contexts is None else lengths(contexts),
        batch_size=batch_size,
        decode_tokens=decode_tokens,
        repeats=repeats,
        draft_length=(draft_length or None) if own else None,
        beyond_context=beyond_context,
    )
    path = output_place(out or (Path("savings.json") if hybrid is not None else RunFolder(base).savings))
    with locked(path.parent), tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        served: Engine = Transformers()  # before the models are loaded: an engine may not be there
        if engine == "llama.cpp":
            served = LlamaCppEngine(dtype, Path(scratch))
        elif engine == "vllm":
            served = VllmEngine(dtype, Path(scratch), stack, vllm or sys.executable)
        kind = dtype if own else "float32"
        one, other = (
            load(source, dtype=kind, device=device, trust_remote_code=trust_remote_code) for source in sources
        )
        figures = measure_savings(one, other, settings, path, served)
    note(f"{path}: every figure")
    show(savings_tables(figures))
