"""Export: a student leaves Radistill, as a Hugging Face folder or as a GGUF file for llama.cpp."""

from collections.abc import Callable
from pathlib import Path

from radistill.console import note
from radistill.errors import RadistillError
from radistill.export.gguf import write_gguf
from radistill.export.hf import write_folder
from radistill.export.lineage import UNKNOWN
from radistill.export.source import Source, find_source
from radistill.runs.folder import MAIN


def _to_gguf(source: Source, out: Path, dtype: str | None) -> None:
    write_gguf(source.folder, out, dtype, _about(source))


# What `--to` may name, and who writes it.
FORMATS: dict[str, Callable[[Source, Path, str | None], None]] = {"hf": write_folder, "gguf": _to_gguf}


def export(
    run: Path | str,
    to: str,
    out: Path | str,
    *,
    arm: str = MAIN,
    dtype: str | None = None,
    force: bool = False,
) -> Path:
    """Write the student of a run, or a model folder, in another form; all of it or nothing.

    Args:
        run: a run folder, or a folder with a model (of which less is known, so its card says less).
        to: "hf", a Hugging Face folder with a model card, or "gguf", a file for llama.cpp.
        out: the folder or file to write.
        arm: "hybrid", or the name of an arm of the run.
        dtype: of the weights: "float32", "float16" or "bfloat16", for a GGUF "q8_0" too; None keeps the model's own.
        force: replace an earlier export.

    Returns:
        `out`.

    Raises:
        RadistillError: if there is no student, the format is unknown or cannot hold the model, a weight is not finite,
            or `out` exists.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    if to not in FORMATS:
        raise RadistillError(f"format {to!r} is unknown; choose from {', '.join(FORMATS)}")
    source = find_source(run, arm)
    _check_output(source, to, out, force)
    if source.run is None:
        note(f"{run}: a model folder without a run, so nothing is said about how it was made")
    FORMATS[to](source, out, dtype)
    return out


def _check_output(source: Source, to: str, out: Path, force: bool) -> None:
    if not out.exists():
        return
    if to == "gguf" and out.is_dir():
        raise RadistillError(f"{out}: is a folder; name a file, such as {out / (source.name + '.gguf')}")
    if to == "hf" and not out.is_dir():
        raise RadistillError(f"{out}: is a file; name a folder")
    if out.resolve() in (source.folder.resolve(), *source.folder.resolve().parents):
        raise RadistillError(f"{out}: holds the model that is exported; choose another folder")
    if not force:
        raise RadistillError(f"{out}: exists already; choose another name, or give --force to replace it")
    if to == "hf" and any(out.iterdir()) and not (out / "config.json").is_file():
        raise RadistillError(f"{out}: holds files that are no model, and they are not overwritten; choose another")


def _about(source: Source) -> dict[str, str | list[int]]:
    """What a GGUF says about itself: name, licence, lineage, and which layers were replaced."""
    about: dict[str, str | list[int]] = {"general.name": source.name}
    base = source.base
    if base is not None:
        about["general.base_model.0.name"] = base.name
        if base.licence != UNKNOWN:
            about["general.license"] = base.licence
        if base.url is not None:
            about["general.base_model.0.repo_url"] = base.url
    if source.replaced:
        about["radistill.replaced_layers"] = source.replaced
    if source.run is not None:
        about["radistill.plan.model_fingerprint"] = source.run.plan.model_fingerprint
    return about


__all__ = ["FORMATS", "export", "find_source", "write_folder", "write_gguf"]
