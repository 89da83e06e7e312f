"""What a training is asked, and what it refuses before it begins."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from radistill.distillation.losses.hidden import check_same_width
from radistill.distillation.modes import check_compiler
from radistill.distillation.settings import DistillSettings, NextTokenSettings
from radistill.distillation.teacher_store import StoredTeacher
from radistill.distillation.teacher_store.read import tokenizer_hash
from radistill.distillation.tracking import check_tracker
from radistill.errors import RadistillError
from radistill.models.loading import Model, check_device
from radistill.models.pictures import SEEING
from radistill.models.sequences import Document
from radistill.models.vocabularies import check_same_tokenizer
from radistill.speculation.drafters import check_same_reader


@dataclass(frozen=True)
class Job:
    """The arguments of `distill` or `finetune`."""

    student: Model
    teacher: Model | StoredTeacher
    train: Sequence[Document]
    heldout: Sequence[Document]
    settings: DistillSettings | NextTokenSettings
    new_parameters: Collection[str]
    seed: int = 0
    folder: Path | None = None
    reference: Model | None = None


def check_training(job: Job) -> None:
    """Refuse what `distill` or `finetune` cannot do.

    Raises:
        RadistillError: naming the argument or the field, and the way out.
    """
    student, teacher, settings, new_parameters = job.student, job.teacher, job.settings, job.new_parameters
    section = settings.section
    if wrong := settings.contradiction:
        raise RadistillError(wrong)
    vocabulary = _check_teacher(student, teacher, settings)
    for name, documents in (("train", job.train), ("heldout", job.heldout)):
        if not documents:
            raise RadistillError(f"{section}: there are no documents in {name}")
        for document in documents:
            if document.images is not None and None in (student.reader, getattr(teacher, "reader", document)):
                raise RadistillError(
                    f"{section}: document {document.id} in {name} has images, and student or teacher reads none"
                )
            if not 0 <= min(document.tokens) <= max(document.tokens) < vocabulary:
                raise RadistillError(
                    f"{section}: document {document.id} in {name} has tokens outside 0 to {vocabulary - 1}; "
                    "it was made with another tokenizer"
                )
    if (settings.select is None) != (job.reference is None):
        raise RadistillError(
            f"{section}: select is {'null' if settings.select is None else 'set'}, but a reference is "
            f"{'given' if job.reference else 'missing'}; leave both out, or give both"
        )
    if job.reference is not None:
        check_same_tokenizer(job.reference, student, ("reference", "student"))
    parameters = dict(student.network.named_parameters())
    unknown = sorted(set(new_parameters) - parameters.keys())
    if unknown:
        raise RadistillError(f"{section}: the student has no parameter {unknown[0]!r}")
    if not (new_parameters and settings.trains(new=True)) and not settings.trains(new=False):
        which = "new_block_learning_rate and other_learning_rate are 0"
        if settings.trains(new=True):
            which = "there are no new blocks and other_learning_rate is 0"
        raise RadistillError(f"{section}: nothing to train: {which}; set a rate above 0")
    if settings.report_to == "tensorboard" and job.folder is None:
        raise RadistillError(f"{section}: report_to tensorboard needs a folder to write to")
    check_tracker(settings.report_to, section)
    if settings.compile:
        check_compiler(student.network.device, section)
    network = teacher.network if isinstance(teacher, Model) else None
    of_teacher = {p.data_ptr() for p in network.parameters()} if network is not None else set()
    trained = trained_parameters(job)
    shared = [name for name in trained if parameters[name].data_ptr() in of_teacher]
    if shared:
        raise RadistillError(f"{section}: student and teacher share the weight {shared[0]}; give each its own copy")


def trained_parameters(job: Job) -> list[str]:
    """Names of the student's parameters that a job trains: none of a vision encoder."""
    student = job.student
    seeing = None if student.reader is None else SEEING[student.network.config.model_type]
    return [
        name
        for name, _ in student.network.named_parameters()
        if job.settings.trains(name in job.new_parameters) and not (seeing is not None and seeing.is_vision(name))
    ]


def _check_teacher(
    student: Model, teacher: Model | StoredTeacher, settings: DistillSettings | NextTokenSettings
) -> int:
    """Refuse a teacher that this student cannot learn from; returns how many tokens both know."""
    if isinstance(teacher, StoredTeacher) and not settings.taught:
        raise RadistillError(
            f"{settings.section}: the teacher is a stored one, but the student is measured against the model itself; "
            "give it that"
        )
    if isinstance(teacher, StoredTeacher) != (settings.teacher_store is not None):
        given, way_out = "a model", "give it what store_teacher has written"
        if isinstance(teacher, StoredTeacher):
            given, way_out = "a stored one", "give it a section"
        raise RadistillError(
            f"distill: teacher_store is {'set' if settings.teacher_store else 'null'}, but the teacher is {given}; "
            f"{way_out}"
        )
    if settings.teacher_device is not None:
        check_device(settings.teacher_device)
    if isinstance(teacher, Model):
        check_same_tokenizer(teacher, student)
        check_same_reader(student, teacher, ("student", "teacher"))
        if settings.hidden is not None:
            check_same_width(teacher.anatomy.hidden_size, student.anatomy.hidden_size)
        return min(model.anatomy.vocab_size for model in (student, teacher))
    if teacher.tokenizer != tokenizer_hash(student.tokenizer) or teacher.vocabulary > student.anatomy.vocab_size:
        raise RadistillError(
            f"{teacher.folder}: the stored teacher has another tokenizer than the student; choose a teacher of the "
            "student's family"
        )
    return teacher.vocabulary
