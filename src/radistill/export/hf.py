"""A student as a Hugging Face folder: weights, config and tokenizer as they are, with a model card."""

import shutil
from pathlib import Path

import torch

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.export.card import model_card
from radistill.export.source import Source
from radistill.export.weights import find_weights, read_weight
from radistill.files import atomic_folder, write_text
from radistill.models.checkpoint import WEIGHT_INDEX, check_tokenizer, own_files
from radistill.models.loading import DTYPES, load

# What a model folder may hold that readers of a hub look for; everything else of a run stays behind.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")


def write_folder(source: Source, out: Path, dtype: str | None = None) -> None:
    """Write the model, its card and the plan to the folder `out`, all of it or nothing.

    Args:
        source: what to export.
        out: an existing folder is replaced.
        dtype: of the weights; None copies them bit for bit.

    Raises:
        RadistillError: if a weight is missing, NaN or infinite, or the tokenizer is missing.
    """
    if dtype is not None and dtype not in DTYPES:
        raise RadistillError(f"dtype is {dtype!r}; for a Hugging Face folder it can be {', '.join(DTYPES)}")
    check_tokenizer(source.folder)
    with atomic_folder(out) as temporary:
        if dtype is None:
            _copy(source, temporary)
        else:
            load(source.folder, dtype=dtype).save(temporary)
        write_text(temporary / "README.md", model_card(source))
        if source.plan is not None:
            # The plan may name its model by a path of this machine.
            name = source.plan.model if source.base is None else source.base.name
            source.plan.model_copy(update={"model": name}).save(temporary / "radistill_plan.json")
        for lineage, name in ((source.base, "LICENSE.base"), (source.teacher, "LICENSE.teacher")):
            if lineage is not None and lineage.terms:
                write_text(temporary / name, lineage.terms)


def _copy(source: Source, target: Path) -> None:
    weights = find_weights(source.folder, source.config)
    with progress("checking", total=len(weights), unit="weights") as advance:
        for name, path in weights.items():
            if not torch.isfinite(read_weight(name, path)).all():
                raise RadistillError(f"{path}: {name} holds NaN or infinite numbers, so this model is not exported")
            advance()
    files = {*weights.values(), *own_files(source.folder, _FILES)}
    if source.folder / "model.safetensors" in files:  # an index beside it belongs to other weights
        files.discard(source.folder / WEIGHT_INDEX)
    for file in sorted(files):
        copy = target / file.relative_to(source.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
