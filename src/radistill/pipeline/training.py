"""The trainings of a run: new blocks are fitted, then the hybrid is distilled, and fine-tuned where that is wanted."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.conversion.seeing import connector_parameters
from radistill.distillation.align import Alignment, align
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import DistillResult, distill, finetune
from radistill.distillation.settings import DistillSettings
from radistill.distillation.teacher_store import StoredTeacher
from radistill.files import move_folder, write_json
from radistill.models.endings import end_tokens
from radistill.models.loading import Model
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import distill_inputs, finetune_inputs
from radistill.pipeline.made import check_made, distilled_of, new_parameters_of, outputs_of, plan_of
from radistill.pipeline.rates import with_best_rate
from radistill.pipeline.steps import is_current, says_current, step_of
from radistill.pipeline.teacher import teacher_of
from radistill.runs.arms import Arm


def run_distill(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Fit the new blocks, then train end to end, the latter in all processes."""
    processes = context.processes
    for arm in arms or context.hybrids:
        files, step = context.files(arm), f"distill:{arm.name}"
        inputs, outputs = processes.decide(partial(distill_inputs, context, arm)), outputs_of(context, arm, "distill")
        processes.decide(partial(check_made, context, arm, "convert", inputs["convert"]))
        if processes.decide(partial(_distilled, context, arm, step, inputs, outputs)):
            continue
        teacher = teacher_of(context, arm)  # if it is only to write its store, before there is a student beside it
        with step_of(context, step, inputs, outputs) as replacing:
            student, alignment, result = _distil(context, arm, teacher, inputs)
            if processes.is_main:
                replacing()
                _leave(context, student, distilled_of(context, arm), {files.align: alignment, files.distill: result})
        if processes.is_main:  # not before the record says that they are not needed any more
            remove_checkpoints(files.folder)


def _distil(
    context: Context, arm: Arm, teacher: Model | StoredTeacher | None, inputs: object
) -> tuple[Model, Alignment | None, DistillResult | None]:
    """The student with its blocks fitted and, if the recipe wants it, distilled at the best of several rates."""
    train, heldout = (context.splits_of("distill").documents(split) for split in ("train", "heldout"))
    settings: DistillSettings | None = arm.distill
    if settings is None or teacher is None:
        return *start(context, arm), None
    reference = None if settings.select is None else context.load(settings.select.reference)

    def trained(settings: DistillSettings, folder: Path) -> tuple[Model, Alignment | None, DistillResult]:
        student, alignment = start(context, arm)
        new, seed = new_parameters_of(context, arm, student), context.recipe.seed
        result = distill(
            student,
            teacher,
            train,
            heldout,
            settings,
            new_parameters=new,
            folder=folder,
            seed=seed,
            reference=reference,
        )
        return student, alignment, result

    if settings.rate_search is not None:
        settings = with_best_rate(context, arm, settings, lambda few, folder: trained(few, folder)[2], inputs)
    return trained(settings, context.files(arm).folder)


def _distilled(context: Context, arm: Arm, step: str, inputs: Any, outputs: list[Path]) -> bool:
    """Whether the distilled model is current. It is moved where it belongs if fine-tuning was taken in or out."""
    files, tuned = context.files(arm), f"finetune:{arm.name}"
    if arm.finetune is None and files.distilled.exists():
        context.folder.forget(tuned, context.recipe.seed)
        files.finetune.unlink(missing_ok=True)  # first: where there is none, `student` is what was distilled
        move_folder(files.distilled, files.student)
        context.recipe.save(context.folder.recipe)
    elif (
        arm.finetune is not None
        and not files.distilled.exists()
        and not files.finetune.exists()
        and tuned not in context.folder.steps
        and files.student.exists()
    ):
        move_folder(files.student, files.distilled)
    current = says_current(context, step, inputs, outputs)
    if current:
        remove_checkpoints(files.folder)  # a kill may have left them
    return current


def _leave(
    context: Context, student: Model, folder: Path, told: Mapping[Path, Alignment | DistillResult | None]
) -> None:
    """Save a student, and what is `told` of it, which goes before it and comes after it."""
    for file in told:
        file.unlink(missing_ok=True)
    if any(isinstance(result, DistillResult) for result in told.values()):
        _take_turns_as_taught(context, student, folder)
    save(student, folder)
    for file, result in told.items():
        if result is not None:
            write_json(file, result.to_json())


def save(student: Model, folder: Path) -> None:
    """Save a model in the run folder, also where a damaged one lies, which would pass for something else."""
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
    student.save(folder)


def _take_turns_as_taught(context: Context, student: Model, folder: Path) -> None:
    """Give a trained student the template that its documents were written with, and say so if it never stops."""
    template = context.chat_template
    if template is not None and template != student.tokenizer.chat_template:
        student.tokenizer = copy.deepcopy(student.tokenizer)
        student.tokenizer.chat_template = template
    if not end_tokens(student):
        note(f"{folder}: neither the base nor the data has an end token, so this model writes on until it is cut")


def start(context: Context, arm: Arm) -> tuple[Model, Alignment | None]:
    """The converted model with its blocks fitted, if they are, or put back where they were fitted before.

    The connector of a drafter that sees is trained first; its last checkpoint stays, so a further call is done at once.
    """
    student = context.load(context.files(arm).start)
    if arm.connect is not None:
        splits = context.splits_of("connect")
        finetune(
            student,
            context.teacher(arm.teacher),
            splits.documents("train"),
            splits.documents("heldout"),
            arm.connect,
            new_parameters=connector_parameters(student),
            folder=context.files(arm).folder / "connect",
            seed=context.recipe.seed,
        )
    if arm.align is None:
        return student, None
    return student, align(
        student,
        context.base,
        context.splits_of("align").documents("train"),
        arm.align,
        replace=plan_of(context, arm).replace,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
        processes=context.processes,
    )


def run_finetune(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Train each hybrid on response tokens, in all processes, where the recipe wants it."""
    processes = context.processes
    for arm in arms or context.hybrids:
        if arm.finetune is None:
            continue
        files, step = context.files(arm), f"finetune:{arm.name}"
        inputs, outputs = processes.decide(partial(finetune_inputs, context, arm)), outputs_of(context, arm, "finetune")
        processes.decide(partial(check_made, context, arm, "distill", inputs["distill"]))
        if not is_current(context, step, inputs, outputs):
            with step_of(context, step, inputs, outputs) as replacing:
                student, splits = context.load(files.distilled), context.splits_of("finetune")
                result = finetune(
                    student,
                    context.teacher(arm.teacher),
                    splits.documents("train"),
                    splits.documents("heldout"),
                    arm.finetune,
                    new_parameters=new_parameters_of(context, arm, student),
                    folder=files.finetuning,
                    seed=context.recipe.seed,
                )
                if processes.is_main:
                    replacing()
                    _leave(context, student, files.student, {files.finetune: result})
        if processes.is_main:
            remove_checkpoints(files.finetuning)
