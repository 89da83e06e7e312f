"""The stages of a run, in order. Each reads and leaves files in the run folder; what is current is not done again."""

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.conversion import TARGETS, convert
from radistill.conversion.targets import find_initialisation, mixer_of
from radistill.data.prepare import prepare
from radistill.distillation.align import Alignment, align
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import distill, finetune
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import Evaluation, evaluate
from radistill.files import hash_file, move_folder, write_json
from radistill.models.endings import end_tokens, turn_end_tokens
from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer
from radistill.pipeline.choice import align_settings, choose, run_tradeoff
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import (
    check_made,
    convert_inputs,
    data_inputs,
    distill_inputs,
    distilled_of,
    evaluate_inputs,
    finetune_inputs,
    new_parameters_of,
    outputs_of,
    plan_of,
    split_file,
    splits_in,
)
from radistill.pipeline.preflight import check_reference, drafts_as_it_is
from radistill.pipeline.promise import keep_tasks
from radistill.pipeline.rates import with_best_rate
from radistill.pipeline.steps import is_current, step_of
from radistill.pipeline.tasks import ask, check_tasks
from radistill.pipeline.teacher import teacher_of
from radistill.report.page import write_report
from radistill.runs.arms import Arm
from radistill.speculation.measure import check_drafter


def run_data(context: Context) -> None:
    """Write the training, calibration and held-out examples, with responses, and those that a stage has for itself."""
    recipe = context.recipe
    inputs, outputs = data_inputs(context, recipe.data), splits_in(context.folder.data(), recipe.data)
    if not is_current(context, "data", inputs, outputs):
        _check(context)
        with step_of(context, "data", inputs, outputs) as replacing:
            teacher, folder = context.teacher(recipe.teacher), context.folder.data()
            prepare(teacher, recipe.data, seed=recipe.seed, folder=folder, replacing=replacing)
    for stage, settings in recipe.own_data.items():
        step, folder = f"data:{stage}", context.data_of(stage)
        # What the run is evaluated on must not be trained on.
        inputs = {**data_inputs(context, settings), "without": hash_file(split_file(context, "heldout"))}
        outputs = splits_in(folder, settings)
        if is_current(context, step, inputs, outputs):
            continue
        with step_of(context, step, inputs, outputs) as replacing:
            teacher, seed = context.teacher(recipe.teacher), recipe.seed
            without = {record.example.prompt for record in context.splits.heldout}
            prepare(teacher, settings, seed=seed, folder=folder, without=without, replacing=replacing)


def run_diagnose(context: Context) -> None:
    """Choose the layers of each hybrid; hybrids that are chosen in the same way have one plan."""
    settings = context.recipe.diagnose
    if settings.budget == "auto":
        run_tradeoff(context)  # which finds it
    if settings.keep is not None and settings.keep.tasks:
        keep_tasks(context, settings.keep.tasks, partial(_trained, context))
    choose(context, context.hybrids)


def _trained(context: Context, arm: Arm) -> None:
    """Choose the layers of a hybrid, convert and train it."""
    choose(context, [arm])
    for stage in (run_convert, run_distill, run_finetune):
        stage(context, [arm])


def run_convert(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Build each hybrid, or these."""
    for arm in arms or context.hybrids:
        files, step = context.files(arm), f"convert:{arm.name}"
        inputs, outputs = convert_inputs(context, arm), outputs_of(context, arm, "convert")
        if is_current(context, step, inputs, outputs):
            continue
        blocks = mixer_of(arm.target).phrase
        with step_of(context, step, inputs, outputs, blocks=blocks) as replacing:
            plan = plan_of(context, arm)
            plan.check(context.base.anatomy, str(files.plan))
            student = convert(context.base, plan.replace, target=arm.target, init=arm.init, seed=context.recipe.seed)
            replacing()
            _save(student, files.start)


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
            train, heldout = (context.splits_of("distill").documents(split) for split in ("train", "heldout"))

            def start(arm: Arm = arm) -> tuple[Model, Alignment | None]:
                return _start(context, arm)

            settings: DistillSettings | None = arm.distill
            select = settings.select if settings is not None else None
            reference = None if select is None else context.load(select.reference)
            if settings is not None and teacher is not None and settings.rate_search is not None:
                settings = with_best_rate(context, arm, lambda: start()[0], teacher, train, heldout, inputs, reference)
            student, alignment = start()
            result = None
            if settings is not None and teacher is not None:
                new, seed = new_parameters_of(context, arm, student), context.recipe.seed
                result = distill(
                    student,
                    teacher,
                    train,
                    heldout,
                    settings,
                    new_parameters=new,
                    folder=files.folder,
                    seed=seed,
                    reference=reference,
                )
            if processes.is_main:
                replacing()
                # What is told of a student goes before it, and comes after it.
                files.align.unlink(missing_ok=True)
                files.distill.unlink(missing_ok=True)
                if result is not None:
                    _take_turns_as_taught(context, student, distilled_of(context, arm))
                _save(student, distilled_of(context, arm))
                if alignment is not None:
                    write_json(files.align, alignment.to_json())
                if result is not None:
                    write_json(files.distill, result.to_json())
        if processes.is_main:  # not before the record says that they are not needed any more
            remove_checkpoints(files.folder)


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
    current = is_current(context, step, inputs, outputs)
    if current:
        remove_checkpoints(files.folder)  # a kill may have left them
    return current


def _take_turns_as_taught(context: Context, student: Model, folder: Path) -> None:
    """Give a trained student the template that its documents were written with, and say so if it never stops."""
    template = context.chat_template
    if template is not None and template != student.tokenizer.chat_template:
        student.tokenizer = copy.deepcopy(student.tokenizer)
        student.tokenizer.chat_template = template
    if not end_tokens(student):
        note(f"{folder}: neither the base nor the data has an end token, so this model writes on until it is cut")


def _start(context: Context, arm: Arm) -> tuple[Model, Alignment | None]:
    """The converted model with its blocks fitted, if they are: the main process fits them, all put them in."""
    student = context.load(context.files(arm).start)
    if arm.align is None:
        return student, None
    processes = context.processes
    alignment = _align(context, arm, student) if processes.is_main else None
    processes.wait()
    return student, alignment or _align(context, arm, student)


def _align(context: Context, arm: Arm, student: Model) -> Alignment:
    """Fit the blocks of `student`, or put back those that were fitted before."""
    return align(
        student,
        context.base,
        context.splits_of("align").documents("train"),
        align_settings(arm),
        replace=plan_of(context, arm).replace,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
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
        if processes.decide(partial(is_current, context, step, inputs, outputs)):
            if processes.is_main:
                remove_checkpoints(files.finetuning)
            continue
        with step_of(context, step, inputs, outputs) as replacing:
            student = context.load(files.distilled)
            result = finetune(
                student,
                context.teacher(arm.teacher),
                context.splits_of("finetune").documents("train"),
                context.splits_of("finetune").documents("heldout"),
                arm.finetune,
                new_parameters=new_parameters_of(context, arm, student),
                folder=files.finetuning,
                seed=context.recipe.seed,
            )
            if processes.is_main:
                replacing()
                files.finetune.unlink(missing_ok=True)
                _take_turns_as_taught(context, student, files.student)
                _save(student, files.student)
                write_json(files.finetune, result.to_json())
        if processes.is_main:
            remove_checkpoints(files.finetuning)


def run_evaluate(context: Context) -> None:
    """Measure base, draft and hybrids on the held-out data; the base of a drafter is the model that it drafts for."""
    inputs = evaluate_inputs(context)
    for arm in context.hybrids:
        trained = inputs["arms"][arm.name]
        distilled = trained["distill"] if arm.finetune else trained
        check_made(context, arm, "convert", distilled["convert"])
        check_made(context, arm, "finetune" if arm.finetune else "distill", trained)
    outputs = [context.folder.evaluation]
    if is_current(context, "evaluate", inputs, outputs):
        return
    with step_of(context, "evaluate", inputs, outputs) as replacing:
        main = context.hybrids[0]
        base = _reference(context)
        results = {"base": _evaluate(context, base, "base", written=_base_answers(context), tasks=True)}
        # Blocks that put out zero, whatever their geometry, are the attentions left out.
        left_out = plan_of(context, main).replace
        draft = convert(context.base, left_out, target=main.target, init=mixer_of(main.target).silent)
        results["draft"] = _evaluate(context, draft, "draft")
        for arm in context.hybrids:
            starts_as_draft = arm.is_main and arm.align is None and find_initialisation(arm.init, arm.target).silent
            if arm.is_trained and not starts_as_draft:
                name = f"{arm.name}_start"
                results[name] = _evaluate(context, _start(context, arm)[0], name, generate=False)
            student = context.load(context.files(arm).student)
            results[arm.name] = _evaluate(context, student, arm.name, tasks=arm.is_main)
        replacing()
        write_json(
            context.folder.evaluation,
            {name: result.to_json() for name, result in results.items()} | {"samples": _samples(context, results)},
        )


def run_report(context: Context) -> None:
    """Write report.html. It takes seconds, so it is always written anew."""
    plan = context.files(context.hybrids[0]).plan
    if not plan.exists():
        raise RadistillError(f"{plan}: no such file; run `radistill diagnose` first")
    if not context.folder.recipe.exists():
        context.recipe.save(context.folder.recipe)
    note(f"report: {write_report(context.folder.path)}")


STAGES: dict[str, Callable[[Context], None]] = {
    "data": run_data,
    "tradeoff": run_tradeoff,
    "diagnose": run_diagnose,
    "convert": run_convert,
    "distill": run_distill,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    "report": run_report,
}

SHARED = {"distill", "finetune"}
"""Stages that all processes of a launch run together."""


def _save(student: Model, folder: Path) -> None:
    """Save a model in the run folder, also where a damaged one lies, which would pass for something else."""
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
    student.save(folder)


def _check(context: Context) -> None:
    """Refuse what cannot be done before anything is computed for it."""
    recipe, base = context.recipe, context.base
    check_tasks(recipe, base.context_length)
    # The one that writes the responses comes last, and so stays loaded.
    teachers = {arm.teacher for arm in context.hybrids if arm.teacher}
    for source in sorted(teachers, key=lambda one: one == recipe.teacher):
        check_same_tokenizer(context.teacher(source), base)
        if any(arm.teacher == source and drafts_as_it_is(recipe, arm) for arm in context.hybrids):
            check_drafter(context.teacher(source), base)
    for arm in context.hybrids:
        if arm.distill is not None and arm.distill.select is not None:
            check_reference(arm.distill.select.reference, recipe.model)


def _reference(context: Context) -> Model:
    """The model that results are relative to: the base or, where the result is a drafter, its target."""
    main = context.hybrids[0]
    return context.base if TARGETS[main.target.kind].mixers else context.teacher(main.teacher)


def _base_answers(context: Context) -> list[tuple[int, ...]] | None:
    """The held-out responses, if they are what the base would answer again."""
    recipe = context.recipe
    same = (
        recipe.teacher is None
        and turn_end_tokens(context.base) == end_tokens(context.base)
        and recipe.data.responses.source == "teacher"
        and recipe.data.responses.temperature == 0
        and recipe.data.responses.max_new_tokens == recipe.evaluate.max_new_tokens
    )
    if not same:
        return None
    return [document.tokens[document.response_start :] for document in context.splits.documents("heldout")]


def _evaluate(
    context: Context,
    model: Model,
    name: str,
    *,
    generate: bool = True,
    written: list[tuple[int, ...]] | None = None,
    tasks: bool = False,
) -> Evaluation:
    records = context.splits.heldout
    result = evaluate(
        model,
        _reference(context),
        [record.document for record in records],
        context.recipe.evaluate,
        verifiers=[record.example.verifier for record in records] if generate else None,
        written=written,
        cache=context.folder.answers(name),
        name=name,
    )
    # The rows lie where `radistill evaluate --tasks` leaves them.
    asks = tasks and context.recipe.evaluate.tasks
    return replace(result, tasks=ask(context.recipe, model, context.folder.tasks / name)) if asks else result


def _samples(context: Context, results: dict[str, Evaluation]) -> list[dict[str, str]]:
    records = context.splits.heldout[: context.recipe.evaluate.samples]
    prompts = [list(record.document.tokens[: record.document.response_start]) for record in records]
    return [
        {"prompt": str(context.base.tokenizer.decode(prompt, skip_special_tokens=True))}
        | {name: result.answers[row] for name, result in results.items() if result.answers}
        for row, prompt in enumerate(prompts)
    ]
