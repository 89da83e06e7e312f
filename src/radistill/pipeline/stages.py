"""The stages of a run, in order. Each reads and leaves files in the run folder; what is current is not done again."""

import copy
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.conversion import TARGETS, check_conversion, convert, new_parameters
from radistill.conversion.targets import find_initialisation, mixer_of
from radistill.data.prepare import prepare
from radistill.diagnosis.diagnose import SearchInterrupted, check_budget, diagnose
from radistill.diagnosis.plan import DRAFTS, Plan
from radistill.distillation.align import Alignment, AlignSettings, align
from radistill.distillation.blocks import fit_blocks
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.checks import check_same_tokenizer
from radistill.distillation.distill import distill, finetune
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import Evaluation, evaluate
from radistill.files import hash_file, hash_json, write_json
from radistill.models.endings import end_tokens, turn_end_tokens
from radistill.models.loading import Model
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import (
    budget_of,
    check_made,
    convert_inputs,
    data_inputs,
    diagnose_inputs,
    distill_inputs,
    distilled_of,
    evaluate_inputs,
    finetune_inputs,
    split_file,
)
from radistill.pipeline.rates import with_best_rate
from radistill.pipeline.teacher import teacher_of
from radistill.report import write_report
from radistill.runs.arms import Arm
from radistill.runs.folder import SPLITS
from radistill.speculation.substitutes import Substitutes


def run_data(context: Context) -> None:
    """Write the training, calibration and held-out examples, with responses, and those that a stage has for itself."""
    recipe = context.recipe
    inputs = data_inputs(context, recipe.data)
    if not _current(context, "data", inputs, _splits_in(context.folder.data())):
        _check(context)
        with _step(context, "data", inputs):
            prepare(context.teacher(recipe.teacher), recipe.data, seed=recipe.seed, folder=context.folder.data())
    for stage, settings in recipe.own_data.items():
        step, folder = f"data:{stage}", context.data_of(stage)
        # What the run is evaluated on must not be trained on.
        inputs = {**data_inputs(context, settings), "without": hash_file(split_file(context, "heldout"))}
        if _current(context, step, inputs, _splits_in(folder)):
            continue
        with _step(context, step, inputs):
            without = {record.example.prompt for record in context.splits.heldout}
            prepare(context.teacher(recipe.teacher), settings, seed=recipe.seed, folder=folder, without=without)


def _splits_in(folder: Path) -> list[Path]:
    return [folder / f"{split}.jsonl" for split in SPLITS]


def run_diagnose(context: Context) -> None:
    """Choose the layers of each hybrid; hybrids that are chosen in the same way have one plan."""
    found: dict[str, Arm] = {}
    for arm in context.hybrids:
        step, plan = f"diagnose:{arm.name}", context.files(arm).plan
        inputs = diagnose_inputs(context, arm)
        twin = found.setdefault(hash_json(inputs), arm)
        if _current(context, step, inputs, [plan]):
            continue
        with _step(context, step, inputs):
            if twin is not arm:
                Plan.load(context.files(twin).plan).save(plan)
                note(f"{arm.name}: has the layers of {twin.name}, which are chosen in the same way")
                continue
            _find_plan(context, arm, plan)


def _find_plan(context: Context, arm: Arm, path: Path) -> None:
    settings = context.recipe.diagnose
    try:
        plan = diagnose(
            context.base,
            context.splits.documents("calibration"),
            budget_of(context, arm),
            selector=arm.selector,
            objective=settings.objective,
            penalty=arm.penalty,
            by=arm.by,
            keeps=TARGETS[arm.target.kind].keeps,
            substitutes=_fit_blocks(context, arm) if arm.by == "replaceability" else None,
            passes=settings.passes,
            context_length=settings.context_length,
            draft_length=settings.draft_length,
            seed=context.recipe.seed,
            tokens_per_batch=settings.tokens_per_batch,
            folder=context.files(arm).search,
        )
    except SearchInterrupted as interrupted:
        interrupted.plan.save(path)
        note(f"{path}: the best plan so far; the same command searches on")
        raise
    plan.save(path)
    note(
        f"{arm.name}: replaces layers {', '.join(map(str, plan.replace))}; "
        f"the draft {DRAFTS[plan.by]} has {plan.acceptance_rate:.1%} of its tokens accepted, KL {plan.kl:.3f}"
    )


def _fit_blocks(context: Context, arm: Arm) -> Substitutes:
    count = len(context.base.anatomy.attention_layers)
    note(f"diagnose: a block is fitted to each of {count} attentions first; the search judges drafts with these blocks")
    return fit_blocks(
        context.base,
        context.splits_of("align").documents("train"),
        _align_settings(arm),
        target=arm.target,
        init=arm.init,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
    )


def run_convert(context: Context) -> None:
    """Build each hybrid."""
    for arm in context.hybrids:
        files, step = context.files(arm), f"convert:{arm.name}"
        inputs = convert_inputs(context, arm)
        if _current(context, step, inputs, [files.start / "config.json"]):
            continue
        with _step(context, step, inputs):
            plan = Plan.load(files.plan)
            plan.check(context.base.anatomy, str(files.plan))
            student = convert(context.base, plan.replace, target=arm.target, init=arm.init, seed=context.recipe.seed)
            student.save(files.start)


def run_distill(context: Context) -> None:
    """Fit the new blocks, then train end to end, the latter in all processes."""
    processes = context.processes
    for arm in context.hybrids:
        files, step = context.files(arm), f"distill:{arm.name}"
        inputs = distill_inputs(context, arm)
        outputs = [distilled_of(context, arm) / "config.json"]
        outputs += [files.align] if arm.align else []
        outputs += [files.distill] if arm.distill else []
        processes.decide(partial(check_made, context, arm, "convert", inputs["convert"]))
        if processes.decide(partial(_distilled, context, arm, step, inputs, outputs)):
            continue
        teacher = teacher_of(context, arm)  # if it is only to write its store, before there is a student beside it
        with _step(context, step, inputs):
            train, heldout = (context.splits_of("distill").documents(split) for split in ("train", "heldout"))

            def start(arm: Arm = arm) -> tuple[Model, Alignment | None]:
                return _start(context, arm)

            settings: DistillSettings | None = arm.distill
            if settings is not None and teacher is not None and settings.rate_search is not None:
                settings = with_best_rate(context, arm, lambda: start()[0], teacher, train, heldout, inputs)
            student, alignment = start()
            result = None
            if settings is not None and teacher is not None:
                new, seed = new_parameters(student, Plan.load(files.plan).replace), context.recipe.seed
                result = distill(
                    student, teacher, train, heldout, settings, new_parameters=new, folder=files.folder, seed=seed
                )
            if processes.is_main:
                if alignment is not None:
                    write_json(files.align, alignment.to_json())
                if result is not None:
                    write_json(files.distill, result.to_json())
                _save_student(context, student, distilled_of(context, arm), trained=result is not None)
                remove_checkpoints(files.folder)


def _distilled(context: Context, arm: Arm, step: str, inputs: Any, outputs: list[Path]) -> bool:
    """Whether the distilled model is current. It is moved where it belongs if fine-tuning was taken in or out."""
    files = context.files(arm)
    if arm.finetune is None and files.distilled.exists():
        files.finetune.unlink(missing_ok=True)  # first: where there is none, `student` is what was distilled
        shutil.rmtree(files.student, ignore_errors=True)
        files.distilled.rename(files.student)
    elif (
        arm.finetune is not None
        and not files.distilled.exists()
        and not files.finetune.exists()
        and files.student.exists()
    ):
        files.student.rename(files.distilled)
    return _current(context, step, inputs, outputs)


def _save_student(context: Context, student: Model, folder: Path, *, trained: bool) -> None:
    """Save a student with what it has learnt: it takes turns by the template that its documents were written with."""
    if trained:
        template = context.chat_template
        if template is not None and template != student.tokenizer.chat_template:
            student.tokenizer = copy.deepcopy(student.tokenizer)
            student.tokenizer.chat_template = template
        if not end_tokens(student):
            note(f"{folder}: neither the base nor the data has an end token, so this model writes on until it is cut")
    student.save(folder)


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
        _align_settings(arm),
        replace=Plan.load(context.files(arm).plan).replace,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
    )


def _align_settings(arm: Arm) -> AlignSettings:
    assert arm.align is not None  # the recipe is checked for it
    return AlignSettings.model_validate(arm.align.model_dump(exclude={"data"}))


def run_finetune(context: Context) -> None:
    """Train each hybrid on response tokens, in all processes, where the recipe wants it."""
    processes = context.processes
    for arm in context.hybrids:
        if arm.finetune is None:
            continue
        files, step = context.files(arm), f"finetune:{arm.name}"
        inputs = finetune_inputs(context, arm)
        processes.decide(partial(check_made, context, arm, "distill", inputs["distill"]))
        if processes.decide(partial(_current, context, step, inputs, [files.student / "config.json", files.finetune])):
            continue
        with _step(context, step, inputs):
            student = context.load(files.distilled)
            result = finetune(
                student,
                context.teacher(arm.teacher),
                context.splits_of("finetune").documents("train"),
                context.splits_of("finetune").documents("heldout"),
                arm.finetune,
                new_parameters=new_parameters(student, Plan.load(files.plan).replace),
                folder=files.finetuning,
                seed=context.recipe.seed,
            )
            if processes.is_main:
                write_json(files.finetune, result.to_json())
                _save_student(context, student, files.student, trained=True)
                remove_checkpoints(files.finetuning)


def run_evaluate(context: Context) -> None:
    """Measure base, draft and hybrids on the held-out data."""
    inputs = evaluate_inputs(context)
    for arm in context.hybrids:
        check_made(context, arm, "finetune" if arm.finetune else "distill", inputs["arms"][arm.name])
    if _current(context, "evaluate", inputs, [context.folder.evaluation]):
        return
    with _step(context, "evaluate", inputs):
        main = context.hybrids[0]
        results = {"base": _evaluate(context, context.base, "base", written=_base_answers(context))}
        # Blocks that put out zero, whatever their geometry, are the attentions left out.
        replace = Plan.load(context.files(main).plan).replace
        draft = convert(context.base, replace, target=main.target, init=mixer_of(main.target).silent)
        results["draft"] = _evaluate(context, draft, "draft")
        for arm in context.hybrids:
            starts_as_draft = arm.is_main and arm.align is None and find_initialisation(arm.init, arm.target).silent
            if arm.is_trained and not starts_as_draft:
                name = f"{arm.name}_start"
                results[name] = _evaluate(context, _start(context, arm)[0], name, generate=False)
            results[arm.name] = _evaluate(context, context.load(context.files(arm).student), arm.name)
        write_json(
            context.folder.evaluation,
            {name: result.to_json() for name, result in results.items()} | {"samples": _samples(context, results)},
        )


def run_report(context: Context) -> None:
    """Write report.html. It takes seconds, so it is always written anew."""
    plan = context.files(context.hybrids[0]).plan
    if not plan.exists():
        raise RadistillError(f"{plan}: no such file; run `radistill diagnose` first")
    context.recipe.save(context.folder.recipe)
    note(f"report: {write_report(context.folder.path)}")


STAGES: dict[str, Callable[[Context], None]] = {
    "data": run_data,
    "diagnose": run_diagnose,
    "convert": run_convert,
    "distill": run_distill,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    "report": run_report,
}

SHARED = {"distill", "finetune"}
"""Stages that all processes of a launch run together."""


def _current(context: Context, step: str, inputs: Any, outputs: list[Path]) -> bool:
    current = context.folder.is_current(step, inputs, outputs)
    note(f"[{step}] " + ("done before, inputs unchanged" if current else "…"))
    return current


def _step(context: Context, step: str, inputs: Any) -> AbstractContextManager[None]:
    """Record a step when the block ends well; the main process does."""
    return context.folder.step(step, inputs, context.recipe.seed) if context.processes.is_main else nullcontext()


def _check(context: Context) -> None:
    """Refuse what cannot be done before anything is computed for it."""
    recipe, base = context.recipe, context.base
    for arm in context.hybrids:
        if arm.budget is not None:
            check_budget(arm.budget, base.anatomy, TARGETS[arm.target.kind].keeps, arm.field("diagnose", "budget"))
        check_conversion(recipe.model, base.network, arm.target, arm.init)
    # The one that writes the responses comes last, and so stays loaded.
    teachers = {arm.teacher for arm in context.hybrids if arm.teacher}
    for source in sorted(teachers, key=lambda one: one == recipe.teacher):
        check_same_tokenizer(context.teacher(source), base)


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
    context: Context, model: Model, name: str, *, generate: bool = True, written: list[tuple[int, ...]] | None = None
) -> Evaluation:
    records = context.splits.heldout
    return evaluate(
        model,
        context.base,
        [record.document for record in records],
        context.recipe.evaluate,
        verifiers=[record.example.verifier for record in records] if generate else None,
        written=written,
        cache=context.folder.answers(name),
        name=name,
    )


def _samples(context: Context, results: dict[str, Evaluation]) -> list[dict[str, str]]:
    records = context.splits.heldout[: context.recipe.evaluate.samples]
    prompts = [list(record.document.tokens[: record.document.response_start]) for record in records]
    return [
        {"prompt": str(context.base.tokenizer.decode(prompt, skip_special_tokens=True))}
        | {name: result.answers[row] for name, result in results.items() if result.answers}
        for row, prompt in enumerate(prompts)
    ]
