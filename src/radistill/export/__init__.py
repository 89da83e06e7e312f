"""Export: a student leaves Radistill, as a Hugging Face folder or as a GGUF file for llama.cpp."""

import os
from collections.abc import Callable
from pathlib import Path

from radistill.console import note
from radistill.errors import RadistillError
from radistill.export.gguf import write_gguf
from radistill.export.hf import write_folder
from radistill.export.lineage import UNKNOWN
from radistill.export.source import Source, find_source
from radistill.files import output_place
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
            or `out` exists or cannot be written.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    if to not in FORMATS:
        raise RadistillError(f"format {to!r} is unknown; choose from {', '.join(FORMATS)}")
    source = find_source(run, arm)
    place = output_place(out, folder=to == "hf")
    _check_output(source, out, force)
    if source.run is None:
        note(f"{run}: a model folder without a run, so nothing is said about how it was made")
    FORMATS[to](source, place, dtype)
    return out


def _check_output(source: Source, out: Path, force: bool) -> None:
    """Refuse what is there already, unless it is an earlier export that may be replaced."""
    if not out.exists():
        return
    if out.resolve() in (source.folder.resolve(), *source.folder.resolve().parents):
        raise RadistillError(f"{out}: holds the model that is exported; choose another folder")
    if not force:
        raise RadistillError(f"{out}: exists already; choose another name, or give --force to replace it")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise RadistillError(f"{out}: holds files that are no model, and they are not overwritten; choose another")
    if os.path.ismount(out):
        raise RadistillError(f"{out}: is where a disk is mounted, and cannot be replaced; name a folder in it")


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
