"""Who teaches a hybrid: a model, or what it has written down before."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, store_teacher
from radistill.distillation.teacher_store.read import store_folder
from radistill.effects import counted
from radistill.errors import RadistillError
from radistill.files import hash_file, hash_json, read_kept, write_kept
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model, load_config
from radistill.models.sequences import Document
from radistill.pipeline.context import Context
from radistill.runs.arms import Arm


def teacher_of(context: Context, arm: Arm) -> Model | StoredTeacher | None:
    """The teacher of a hybrid, None if it has none; all processes must ask for it together.

    Where the recipe wants it stored, it is loaded only if something is missing of its store, which serves every hybrid
    that asks for the same. It is given back then, and also where an earlier stage had loaded it.
    """
    if arm.distill is None:
        return None
    settings = arm.distill.teacher_store
    if settings is None:
        return context.teacher(arm.teacher)
    splits = context.splits_of("distill")
    documents = [*splits.documents("train"), *splits.documents("heldout")]
    vocabulary = anatomy_of(load_config(context.files(arm).start, context.recipe.trust_remote_code)).vocab_size
    inputs = context.processes.decide(partial(_inputs, context, arm, settings, vocabulary))
    step = f"teacher-store:{hash_json(inputs)[:8]}"
    folder = Path(settings.folder) if settings.folder else context.folder.teacher_store
    place = context.folder.teacher_store_record(hash_json(inputs)[:8])
    own = context.processes.decide(partial(_current, context, step, inputs, place, folder, documents))
    if own is not None:
        context.release_teachers()
        return StoredTeacher(own, documents)
    outputs = [place]
    seed = context.recipe.seed
    with context.folder.step(step, inputs, outputs, seed=seed) if context.processes.is_main else nullcontext():
        store = store_teacher(
            context.teacher(arm.teacher) if settings.server is None else context.served(arm.teacher),
            documents,
            settings,
            vocabulary=vocabulary,
            folder=folder,
            precision=arm.distill.precision,
            device=arm.distill.teacher_device,
            processes=context.processes,
        )
        if context.processes.is_main:
            write_kept(place, hash_json(inputs), store.key)
            outputs.append(store.folder)
    context.release_teachers()
    return store


def _current(
    context: Context, step: str, inputs: dict[str, Any], place: Path, folder: Path, documents: Sequence[Document]
) -> Path | None:
    """The folder of the store that `place` names; None where it names none, or one of the two is damaged."""
    key = read_kept(place, hash_json(inputs))
    store = None if key is None else store_folder(folder, key)
    if store is not None and context.folder.is_current(step, inputs, [place, store]):
        try:
            StoredTeacher(store, documents)
        except RadistillError as error:
            note(f"{error}; this is done now")
            store = None
    else:
        store = None
    note(f"[{step}] " + ("…" if store is None else "done before, inputs unchanged"))
    return store


def _inputs(context: Context, arm: Arm, settings: TeacherStoreSettings, vocabulary: int) -> dict[str, Any]:
    assert arm.distill is not None
    return {
        "teacher": context.signature(arm.teacher or context.recipe.model),
        "train": hash_file(context.data_of("distill") / "train.jsonl"),
        "heldout": hash_file(context.data_of("distill") / "heldout.jsonl"),
        "settings": counted(settings),
        "precision": arm.distill.precision,
        "vocabulary": vocabulary,
        **context.settings_of("dtype"),
    }
