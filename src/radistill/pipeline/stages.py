"""The stages of a run, in order. Each reads and leaves files in the run folder; what is current is not done again."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from radistill.console import note
from radistill.conversion import TARGETS, convert
from radistill.conversion.targets import find_initialisation, mixer_of
from radistill.data.prepare import prepare
from radistill.diagnosis.diagnose import SearchInterrupted, allowed_passes, diagnose
from radistill.diagnosis.objectives import make_objective
from radistill.diagnosis.selectors import Curve
from radistill.diagnosis.trials import Trials
from radistill.distillation.align import Alignment, AlignSettings, align
from radistill.distillation.blocks import fit_blocks
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import distill, finetune
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError
from radistill.evaluation.comparison import compare_results, read_results
from radistill.evaluation.evaluate import Evaluation, evaluate
from radistill.evaluation.figures import Figures
from radistill.evaluation.run_tasks import run_tasks
from radistill.evaluation.tradeoff import kept, trade_off
from radistill.files import hash_file, hash_json, move_folder, write_json
from radistill.locks import locked
from radistill.models.endings import end_tokens, turn_end_tokens
from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import (
    Stage,
    budget_of,
    check_made,
    convert_inputs,
    data_inputs,
    diagnose_inputs,
    distill_inputs,
    distilled_of,
    evaluate_inputs,
    finetune_inputs,
    most_layers,
    new_parameters_of,
    outputs_of,
    plan_of,
    promise_inputs,
    promised,
    split_file,
    splits_in,
    tradeoff_inputs,
)
from radistill.pipeline.rates import with_best_rate
from radistill.pipeline.tasks import check_tasks, tasks_of_recipe
from radistill.pipeline.teacher import teacher_of
from radistill.report.page import write_report
from radistill.runs.arms import Arm
from radistill.runs.folder import MAIN
from radistill.speculation.substitutes import Substitutes


def run_data(context: Context) -> None:
    """Write the training, calibration and held-out examples, with responses, and those that a stage has for itself."""
    recipe = context.recipe
    inputs, outputs = data_inputs(context, recipe.data), splits_in(context.folder.data(), recipe.data)
    if not _current(context, "data", inputs, outputs):
        _check(context)
        with _step(context, "data", inputs, outputs) as replacing:
            teacher, folder = context.teacher(recipe.teacher), context.folder.data()
            prepare(teacher, recipe.data, seed=recipe.seed, folder=folder, replacing=replacing)
    for stage, settings in recipe.own_data.items():
        step, folder = f"data:{stage}", context.data_of(stage)
        # What the run is evaluated on must not be trained on.
        inputs = {**data_inputs(context, settings), "without": hash_file(split_file(context, "heldout"))}
        outputs = splits_in(folder, settings)
        if _current(context, step, inputs, outputs):
            continue
        with _step(context, step, inputs, outputs) as replacing:
            teacher, seed = context.teacher(recipe.teacher), recipe.seed
            without = {record.example.prompt for record in context.splits.heldout}
            prepare(teacher, settings, seed=seed, folder=folder, without=without, replacing=replacing)


def run_tradeoff(context: Context) -> None:
    """Find the best set of every size for the main hybrid and measure it, where the recipe wants that."""
    recipe, main, path = context.recipe, context.hybrids[0], context.folder.tradeoff
    settings = recipe.diagnose
    if not settings.draws_tradeoff:
        return
    selector = main.selector if isinstance(main.selector, Curve) else Curve()
    inputs = tradeoff_inputs(context, selector)
    if _current(context, "tradeoff", inputs, [path]):
        return
    with _step(context, "tradeoff", inputs, [path]) as replacing:
        substitutes = _fit_blocks(context, main) if main.by == "replaceability" else None
        folder, splits = context.files(main).search, context.splits
        trials = Trials(
            context.base,
            splits.documents("calibration"),
            make_objective(settings.objective, context.base, settings.context_length, folder, settings.draft_length),
            retrieval=splits.documents("calibration_retrieval"),
            tokens_per_batch=settings.tokens_per_batch,
            folder=folder,
            substitutes=substitutes,
            components=TARGETS[main.target.kind].goes,
        )
        found = trade_off(
            trials,
            (splits.documents("heldout"), splits.documents("heldout_retrieval")),
            selector,
            state_numbers=TARGETS[main.target.kind].geometry(context.base.network.config, main.target).state_numbers,
            seed=recipe.seed,
            passes=allowed_passes(trials, settings.passes, settings.minutes, folder),
            folder=folder,
        )
        keep = promised(recipe)
        best = kept(found["points"], keep) if settings.budget == "auto" else None
        replacing()
        write_json(path, found | {"by": main.by, "keep": keep, "budget": best and best["budget"]})


def run_diagnose(context: Context) -> None:
    """Choose the layers of each hybrid; hybrids that are chosen in the same way have one plan."""
    settings = context.recipe.diagnose
    if settings.budget == "auto":
        run_tradeoff(context)  # which finds it
    if settings.keep is not None and settings.keep.tasks:
        _keep_tasks(context, settings.keep.tasks)
    _choose(context, context.hybrids)


def _keep_tasks(context: Context, limits: dict[str, float]) -> None:
    """Train hybrids, from the largest that the trade-off allows down by bisection, until one keeps the tasks.

    It becomes the main hybrid, and the others are removed.
    """
    path, inputs = context.folder.promise, promise_inputs(context)
    if not _current(context, "promise", inputs, [path]):
        with _step(context, "promise", inputs, [path]) as replacing:
            candidates: list[dict[str, Any]] = []
            most = most_layers(context)
            # Below a size that keeps the tasks every size is taken to keep them, and above one that does not none.
            holds, fails, size = 0, most + 1, most
            while fails - holds > 1:
                candidates.append(_asked(context, size, limits))
                holds, fails = (size, fails) if candidates[-1]["is_kept"] else (holds, size)
                size = (holds + fails) // 2
            replacing()
            write_json(path, {"keep": limits, "candidates": candidates, "budget": holds or None})
    main, chosen = context.hybrids[0], _candidate(context, budget_of(context, context.hybrids[0]))
    for stage in get_args(Stage):
        step = f"{stage}:{chosen.name}"
        if step in context.folder.steps:
            of, to = (outputs_of(context, arm, stage) for arm in (chosen, main))
            moved = list(zip(of, to, strict=True))
            context.folder.hand_over(step, f"{stage}:{MAIN}", moved, context.recipe.seed)
    for folder in context.folder.arms.glob(f"{_CANDIDATE}*"):
        for step in [step for step in context.folder.steps if step.endswith(f":{folder.name}")]:
            context.folder.forget(step, context.recipe.seed)
        shutil.rmtree(folder)


_CANDIDATE = "budget~"
"""What the name of a hybrid begins with that is trained to be asked the tasks of a promise: no arm can have it."""


def _candidate(context: Context, size: int) -> Arm:
    return replace(context.hybrids[0], name=f"{_CANDIDATE}{size}", budget=size)


def _asked(context: Context, size: int, limits: dict[str, float]) -> dict[str, Any]:
    """How a trained hybrid with `size` layers replaced does the tasks, beside the model."""
    arm = _candidate(context, size)
    _choose(context, [arm])
    for stage in (run_convert, run_distill, run_finetune):
        stage(context, [arm])
    folders = {"base": context.folder.tasks / "base", arm.name: context.files(arm).folder / "tasks"}
    models = {"base": context.base, arm.name: context.load(context.files(arm).student)}
    for name, folder in folders.items():
        _ask(context, models[name], folder)
    lines = compare_results([read_results(name, folder) for name, folder in folders.items()])
    by_task = {line.task: line.differences[0] for line in lines if not line.group}
    found = {task: of for task in limits if (of := by_task.get(task)) is not None}
    points = [f"{task} {100 * of.difference:+.1f} points" for task, of in found.items()]
    note(f"promise: {size} layers replaced, {', '.join(points)}")
    return {
        "budget": size,
        "layers": plan_of(context, arm).replace,
        "tasks": {
            task: {"difference": of.difference, "interval": of.interval, "p": of.p, "n": of.n}
            for task, of in found.items()
        },
        "is_kept": all(task in found and found[task].difference >= limit for task, limit in limits.items()),
    }


def _choose(context: Context, arms: Sequence[Arm]) -> None:
    found: dict[str, Arm] = {}
    for arm in arms:
        step, plan = f"diagnose:{arm.name}", context.files(arm).plan
        inputs = diagnose_inputs(context, arm)
        twin = found.setdefault(hash_json(inputs), arm)
        # A plan may be edited by hand, and then has another size: it is there, or it is not.
        if _current(context, step, inputs if plan.exists() else None, []):
            continue
        with _step(context, step, inputs, []) as replacing:
            if twin is not arm:
                replacing()
                plan_of(context, twin).save(plan)
                note(f"{arm.name}: has the layers of {twin.name}, which are chosen in the same way")
                continue
            _find_plan(context, arm, plan, replacing)


def _find_plan(context: Context, arm: Arm, path: Path, replacing: Callable[[], None]) -> None:
    settings = context.recipe.diagnose
    try:
        plan = diagnose(
            context.base,
            context.splits.documents("calibration"),
            budget_of(context, arm),
            selector=arm.selector,
            objective=settings.objective,
            retrieval=context.splits.documents("calibration_retrieval"),
            penalty=arm.penalty,
            by=arm.by,
            keeps=TARGETS[arm.target.kind].keeps,
            substitutes=_fit_blocks(context, arm) if arm.by == "replaceability" else None,
            components=TARGETS[arm.target.kind].goes,
            passes=settings.passes,
            minutes=settings.minutes,
            context_length=settings.context_length,
            draft_length=settings.draft_length,
            seed=context.recipe.seed,
            tokens_per_batch=settings.tokens_per_batch,
            # What was judged for the trade-off is judged for all.
            folder=context.files(arm if arm in context.hybrids else context.hybrids[0]).search,
        )
    except SearchInterrupted as interrupted:
        replacing()
        interrupted.plan.save(path)
        note(f"{path}: the best plan so far; the same command searches on")
        raise
    replacing()
    plan.save(path)
    note(
        f"{arm.name}: {'cuts' if plan.whole_layers else 'replaces'} layers {', '.join(map(str, plan.replace))}; "
        f"the draft {plan.draft} has {plan.acceptance_rate:.1%} of its tokens accepted, KL {plan.kl:.3f}"
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


def run_convert(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Build each hybrid, or these."""
    for arm in arms or context.hybrids:
        files, step = context.files(arm), f"convert:{arm.name}"
        inputs, outputs = convert_inputs(context, arm), outputs_of(context, arm, "convert")
        if _current(context, step, inputs, outputs):
            continue
        blocks = mixer_of(arm.target).phrase
        with _step(context, step, inputs, outputs, blocks=blocks) as replacing:
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
        with _step(context, step, inputs, outputs) as replacing:
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
    current = _current(context, step, inputs, outputs)
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
        _align_settings(arm),
        replace=plan_of(context, arm).replace,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
    )


def _align_settings(arm: Arm) -> AlignSettings:
    assert arm.align is not None  # the recipe is checked for it
    return AlignSettings.model_validate(arm.align.model_dump(exclude={"data"}))


def run_finetune(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Train each hybrid on response tokens, in all processes, where the recipe wants it."""
    processes = context.processes
    for arm in arms or context.hybrids:
        if arm.finetune is None:
            continue
        files, step = context.files(arm), f"finetune:{arm.name}"
        inputs, outputs = processes.decide(partial(finetune_inputs, context, arm)), outputs_of(context, arm, "finetune")
        processes.decide(partial(check_made, context, arm, "distill", inputs["distill"]))
        if processes.decide(partial(_current, context, step, inputs, outputs)):
            if processes.is_main:
                remove_checkpoints(files.finetuning)
            continue
        with _step(context, step, inputs, outputs) as replacing:
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
    if _current(context, "evaluate", inputs, outputs):
        return
    with _step(context, "evaluate", inputs, outputs) as replacing:
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


_SECTIONS = {
    "data": ("model", "teacher", "seed", "threads", "dtype", "device", "trust_remote_code", "data"),
    "tradeoff": ("diagnose",),
    "promise": ("diagnose",),
    "diagnose": ("diagnose",),
    "convert": ("convert",),
    "distill": ("align", "distill"),
    "finetune": ("finetune",),
    "evaluate": ("evaluate",),
}
"""What of a recipe each stage of the main hybrid is made with. Its own data is in the section that reads it."""


def _current(context: Context, step: str, inputs: Any, outputs: list[Path]) -> bool:
    current = context.folder.is_current(step, inputs, outputs)
    note(f"[{step}] " + ("done before, inputs unchanged" if current else "…"))
    return current


@contextmanager
def _step(context: Context, step: str, inputs: Any, outputs: list[Path], **told: str) -> Iterator[Callable[[], None]]:
    """Record a step and the recipe when the block ends well, see `RunFolder.step`; the main process does.

    A recipe that is refused does not take the place of the one that made what is there.
    """
    if not context.processes.is_main:
        yield lambda: None
        return
    if not context.folder.recipe.exists():  # for whoever goes on after a kill
        context.recipe.save(context.folder.recipe)
    stage, _, name = step.partition(":")
    recipe = context.recipe.model_dump(mode="json")
    if name in recipe["arms"]:
        made_with: dict[str, Any] = {"arms": {name: recipe["arms"][name]}}
    else:
        made_with = {} if name in recipe and stage == "data" else {one: recipe[one] for one in _SECTIONS[stage]}
    with context.folder.step(step, inputs, outputs, recipe=made_with, seed=context.recipe.seed, **told) as replacing:
        yield replacing
    context.recipe.save(context.folder.recipe)


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
    return replace(result, tasks=_ask(context, model, context.folder.tasks / name)) if asks else result


def _ask(context: Context, model: Model, folder: Path) -> dict[str, Figures]:
    """Evaluate a model on the recipe's tasks."""
    asked, settings = tasks_of_recipe(context.recipe)
    with locked(folder):
        return run_tasks(model, asked, settings, folder, replace=True)


def _samples(context: Context, results: dict[str, Evaluation]) -> list[dict[str, str]]:
    records = context.splits.heldout[: context.recipe.evaluate.samples]
    prompts = [list(record.document.tokens[: record.document.response_start]) for record in records]
    return [
        {"prompt": str(context.base.tokenizer.decode(prompt, skip_special_tokens=True))}
        | {name: result.answers[row] for name, result in results.items() if result.answers}
        for row, prompt in enumerate(prompts)
    ]
