"""Who teaches a hybrid: a model, or what it has written down before."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, store_teacher
from radistill.distillation.teacher_store.layout import HEADER, store_folder
from radistill.files import hash_file, read_json, write_json
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model, load_config
from radistill.pipeline.context import Arm, Context, source_signature

_STEP = "teacher-store"


def teacher_of(context: Context, arm: Arm) -> Model | StoredTeacher | None:
    """The teacher of a hybrid, None if it has none; all processes must ask for it together.

    Where the recipe wants it stored, it is loaded only if something is missing of its store. It is given back then, and
    also where an earlier stage had loaded it.
    """
    if arm.distill is None:
        return None
    settings = arm.distill.teacher_store
    if settings is None:
        return context.teacher
    splits = context.splits_of("distill")
    documents = [*splits.documents("train"), *splits.documents("heldout")]
    inputs = _inputs(context, arm, settings)
    place = context.path / "teacher_store.json"
    folder = Path(settings.folder) if settings.folder else context.path / "teacher_store"
    if context.processes.decide(partial(_current, context, inputs, place, folder)):
        context.release_teacher()
        return StoredTeacher(_own(folder, place), documents)
    with context.folder.step(_STEP, inputs, context.recipe.seed) if context.processes.is_main else nullcontext():
        store = store_teacher(
            context.teacher,
            documents,
            settings,
            vocabulary=_vocabulary(context, arm),
            folder=folder,
            precision=arm.distill.precision,
            device=arm.distill.teacher_device,
            processes=context.processes,
        )
        if context.processes.is_main:
            write_json(place, {"key": store.key})
    context.release_teacher()
    return store


def _current(context: Context, inputs: dict[str, Any], place: Path, folder: Path) -> bool:
    outputs = [place, _own(folder, place) / HEADER] if place.exists() else [place]
    current = context.folder.is_current(_STEP, inputs, outputs)
    note(f"[{_STEP}] " + ("done before, inputs unchanged" if current else "…"))
    return current


def _own(folder: Path, place: Path) -> Path:
    """The folder of the store that `place` names."""
    return store_folder(folder, read_json(place)["key"])


def _vocabulary(context: Context, arm: Arm) -> int:
    """The student's."""
    return anatomy_of(load_config(arm.start, context.recipe.trust_remote_code)).vocab_size


def _inputs(context: Context, arm: Arm, settings: TeacherStoreSettings) -> dict[str, Any]:
    assert arm.distill is not None
    return {
        "teacher": source_signature(context.recipe.teacher or context.recipe.model),
        "train": hash_file(context.data_of("distill") / "train.jsonl"),
        "heldout": hash_file(context.data_of("distill") / "heldout.jsonl"),
        "settings": settings.model_dump(mode="json"),
        "precision": arm.distill.precision,
        "vocabulary": _vocabulary(context, arm),
        **context.settings_of("dtype"),
    }
