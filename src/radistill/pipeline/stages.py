"""The stages of a run, in order. Each reads and leaves files in the run folder; what is current is not done again."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.conversion import TARGETS, check_conversion, convert, new_parameters
from radistill.conversion.targets import mixer_of
from radistill.data.prepare import prepare
from radistill.data.settings import DataSettings
from radistill.diagnosis.diagnose import SearchInterrupted, check_budget, diagnose
from radistill.diagnosis.plan import DRAFTS, Plan
from radistill.distillation.align import Alignment, AlignSettings, align
from radistill.distillation.blocks import fit_blocks
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import DistillResult, distill
from radistill.distillation.finetune import finetune
from radistill.distillation.teacher_store import StoredTeacher
from radistill.distillation.vocabulary import check_same_tokenizer
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import Evaluation, evaluate
from radistill.files import hash_file, write_json
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.pipeline.context import Arm, Context, source_signature
from radistill.pipeline.teacher import teacher_of
from radistill.report import write_report
from radistill.runs.recipe import AlignStage, DistillStage, FinetuneStage
from radistill.speculation.substitutes import Substitutes


def run_data(context: Context) -> None:
    """Write the training, calibration and held-out examples, with responses, and those that a stage has for itself."""
    recipe, folder = context.recipe, context.path / "data"
    inputs = _data_inputs(context, recipe.data)
    if not _current(context, "data", inputs, _splits_in(folder)):
        _check(context)
        with context.folder.step("data", inputs, recipe.seed):
            prepare(context.teacher, recipe.data, seed=recipe.seed, folder=folder)
    for stage, settings in recipe.own_data.items():
        step, folder = f"data:{stage}", context.data_of(stage)
        # What the run is evaluated on must not be trained on.
        inputs = {**_data_inputs(context, settings), "without": hash_file(_data(context, "heldout"))}
        if _current(context, step, inputs, _splits_in(folder)):
            continue
        with context.folder.step(step, inputs, recipe.seed):
            without = {record.example.prompt for record in context.splits.heldout}
            prepare(context.teacher, settings, seed=recipe.seed, folder=folder, without=without)


def _splits_in(folder: Path) -> list[Path]:
    return [folder / f"{split}.jsonl" for split in ("train", "calibration", "heldout")]


def run_diagnose(context: Context) -> None:
    """Choose the layers of each hybrid."""
    for arm in context.arms:
        step = f"diagnose:{arm.name}"
        inputs = _diagnose_inputs(context, arm)
        if _current(context, step, inputs, [arm.plan]):
            continue
        with context.folder.step(step, inputs, context.recipe.seed):
            settings = context.recipe.diagnose
            substitutes = _fit_blocks(context, arm) if arm.by == "replaceability" else None
            try:
                plan = diagnose(
                    context.base,
                    context.splits.documents("calibration"),
                    _budget(context, arm),
                    selector=arm.selector,
                    objective=settings.objective,
                    penalty=settings.penalty if arm.is_main else None,
                    keeps=TARGETS[arm.target.kind].keeps,
                    substitutes=substitutes,
                    passes=settings.passes,
                    context_length=settings.context_length,
                    draft_length=settings.draft_length,
                    seed=context.recipe.seed,
                    tokens_per_batch=settings.tokens_per_batch,
                    folder=arm.folder / "search",
                )
            except SearchInterrupted as interrupted:
                interrupted.plan.save(arm.plan)
                note(f"{arm.plan}: the best plan so far; the same command searches on")
                raise
            plan.save(arm.plan)
            note(
                f"{arm.name}: replaces layers {', '.join(map(str, plan.replace))}; "
                f"the draft {DRAFTS[plan.by]} has {plan.acceptance_rate:.1%} of its tokens accepted, KL {plan.kl:.3f}"
            )


def _budget(context: Context, arm: Arm) -> int:
    """The recipe's; where that lets the search choose how many, a baseline has as many as the hybrid."""
    settings = context.recipe.diagnose
    if arm.is_main or settings.penalty is None:
        return settings.budget
    return len(Plan.load(context.arms[0].plan).replace)


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
        folder=arm.folder / "aligned",
    )


def run_convert(context: Context) -> None:
    """Build each hybrid."""
    for arm in context.arms:
        step = f"convert:{arm.name}"
        inputs = _convert_inputs(context, arm)
        if _current(context, step, inputs, [arm.start / "config.json"]):
            continue
        with context.folder.step(step, inputs, context.recipe.seed):
            plan = Plan.load(arm.plan)
            plan.check(context.base.anatomy, str(arm.plan))
            student = convert(context.base, plan.replace, target=arm.target, init=arm.init, seed=context.recipe.seed)
            student.save(arm.start)


def run_distill(context: Context) -> None:
    """Fit the new blocks, then train end to end, the latter in all processes."""
    processes = context.processes
    for arm in context.arms:
        step = f"distill:{arm.name}"
        inputs = _distill_inputs(context, arm)
        outputs = [arm.distilled / "config.json"]
        outputs += [arm.folder / "align.json"] if arm.align else []
        outputs += [arm.folder / "distill.json"] if arm.distill else []
        if processes.decide(partial(_distilled, context, arm, step, inputs, outputs)):
            continue
        teacher = teacher_of(context, arm)  # if it is only to write its store, before there is a student beside it
        with context.folder.step(step, inputs, context.recipe.seed) if processes.is_main else nullcontext():
            student = context.load(arm.start)
            if arm.align is not None:
                alignment = _align(context, arm, student) if processes.is_main else None
                processes.wait()
                if alignment is not None:
                    write_json(arm.folder / "align.json", alignment.to_json())
                else:
                    _align(context, arm, student)  # puts back what the main process has just fitted
            result = _train(context, arm, student, teacher)
            if processes.is_main:
                if result is not None:
                    write_json(arm.folder / "distill.json", result.to_json())
                student.save(arm.distilled)
                remove_checkpoints(arm.folder)


def _distilled(context: Context, arm: Arm, step: str, inputs: Any, outputs: list[Path]) -> bool:
    """Whether the distilled model is current. It is moved where it belongs if fine-tuning was taken in or out."""
    before, tuned = arm.folder / "distilled", arm.folder / "finetune.json"
    if arm.finetune is None and before.exists():
        tuned.unlink(missing_ok=True)  # first: where there is none, `student` is what was distilled
        shutil.rmtree(arm.student, ignore_errors=True)
        before.rename(arm.student)
    elif arm.finetune is not None and not before.exists() and not tuned.exists() and arm.student.exists():
        arm.student.rename(before)
    return _current(context, step, inputs, outputs)


def _train(context: Context, arm: Arm, student: Model, teacher: Model | StoredTeacher | None) -> DistillResult | None:
    if arm.distill is None or teacher is None:
        return None
    return distill(
        student,
        teacher,
        context.splits_of("distill").documents("train"),
        context.splits_of("distill").documents("heldout"),
        arm.distill,
        new_parameters=new_parameters(student, Plan.load(arm.plan).replace),
        folder=arm.folder,
        seed=context.recipe.seed,
    )


def run_finetune(context: Context) -> None:
    """Train each hybrid on response tokens, in all processes, where the recipe wants it."""
    processes = context.processes
    for arm in context.arms:
        if arm.finetune is None:
            continue
        step = f"finetune:{arm.name}"
        inputs = _finetune_inputs(context, arm)
        result_file = arm.folder / "finetune.json"
        if processes.decide(partial(_current, context, step, inputs, [arm.student / "config.json", result_file])):
            continue
        with context.folder.step(step, inputs, context.recipe.seed) if processes.is_main else nullcontext():
            student = context.load(arm.distilled)
            result = finetune(
                student,
                context.teacher,
                context.splits_of("finetune").documents("train"),
                context.splits_of("finetune").documents("heldout"),
                arm.finetune,
                new_parameters=new_parameters(student, Plan.load(arm.plan).replace),
                folder=arm.folder / "finetune",
                seed=context.recipe.seed,
            )
            if processes.is_main:
                write_json(result_file, result.to_json())
                student.save(arm.student)
                remove_checkpoints(arm.folder / "finetune")


def run_evaluate(context: Context) -> None:
    """Measure base, draft and hybrids on the held-out data."""
    output = context.path / "evaluation.json"
    inputs = {
        **context.settings_of("evaluate", "seed"),
        "arms": [(_finetune_inputs if arm.finetune else _distill_inputs)(context, arm) for arm in context.arms],
        "heldout": hash_file(_data(context, "heldout")),
    }
    if _current(context, "evaluate", inputs, [output]):
        return
    with context.folder.step("evaluate", inputs, context.recipe.seed):
        rad, *others = context.arms
        results = {"base": _evaluate(context, context.base, "base", written=_base_answers(context))}
        silent = mixer_of(rad.target).silent
        draft = convert(context.base, Plan.load(rad.plan).replace, target=rad.target, init=silent)
        results["draft"] = _evaluate(context, draft, "draft")
        if rad.align is not None and (rad.distill is not None or rad.finetune is not None):
            aligned = context.load(rad.start)
            _align(context, rad, aligned)
            results["rad_aligned"] = _evaluate(context, aligned, "rad_aligned", generate=False)
        results["rad"] = _evaluate(context, context.load(rad.student), "rad")
        for arm in others:
            results[f"{arm.name}_start"] = _evaluate(
                context, context.load(arm.start), f"{arm.name}_start", generate=False
            )
            results[arm.name] = _evaluate(context, context.load(arm.student), arm.name)
        write_json(
            output,
            {name: result.to_json() for name, result in results.items()} | {"samples": _samples(context, results)},
        )


def run_report(context: Context) -> None:
    """Write report.html. It takes seconds, so it is always written anew."""
    if not (context.path / "plan.json").exists():
        raise RadistillError(f"{context.path / 'plan.json'}: no such file; run `radistill diagnose` first")
    context.recipe.save(context.path / "recipe.yaml")
    note(f"report: {write_report(context.path)}")


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


def _check(context: Context) -> None:
    """Refuse what cannot be done before anything is computed for it."""
    recipe, base = context.recipe, context.base
    for arm in context.arms:
        check_budget(recipe.diagnose.budget, base.anatomy, TARGETS[arm.target.kind].keeps)
        check_conversion(recipe.model, base.network, arm.target, arm.init)
    if recipe.teacher is not None:
        check_same_tokenizer(context.teacher, base)


def _data(context: Context, split: str, stage: str | None = None) -> Path:
    """The file of a split: of the recipe's data, or of what `stage` reads."""
    path = (context.data_of(stage) if stage else context.path / "data") / f"{split}.jsonl"
    if not path.exists():
        raise RadistillError(f"{path}: no such file; run `radistill data` first")
    return path


def _data_inputs(context: Context, settings: DataSettings) -> dict[str, Any]:
    recipe = context.recipe
    data = [getattr(settings, field, None) for field in ("path", "heldout_path", "id")]
    return {
        "models": [source_signature(source) for source in (recipe.model, recipe.teacher) if source],
        # Data that lies on this machine may change under the same name.
        "data": [
            hash_file(place) if Path(place).is_file() else source_signature(str(place)) for place in data if place
        ],
        "settings": settings.model_dump(mode="json"),
        **context.settings_of("dtype", "seed"),
    }


def _diagnose_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    diagnose_settings = context.recipe.diagnose.model_dump(mode="json", exclude={"selector"})
    return {
        "model": source_signature(context.recipe.model),
        # By how many processes, and where they kept their study, makes no other plan of a finished one.
        "selector": arm.selector.model_dump(mode="json", exclude={"workers", "storage"}),
        "calibration": hash_file(_data(context, "calibration")),
        "settings": diagnose_settings,
        "budget": _budget(context, arm),
        "blocks": _blocks_inputs(context, arm) if arm.by == "replaceability" else None,
        **context.settings_of("dtype", "seed"),
    }


def _blocks_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    return {
        "train": hash_file(_data(context, "train", "align")),
        "align": _own_settings(arm.align),
        "target": arm.target.model_dump(mode="json"),
        "init": arm.init,
    }


def _convert_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    if not arm.plan.exists():
        raise RadistillError(f"{arm.plan}: no such file; run `radistill diagnose` first")
    return {
        "model": source_signature(context.recipe.model),
        "replace": Plan.load(arm.plan).replace,
        "target": arm.target.model_dump(mode="json"),
        "init": arm.init,
        **context.settings_of("dtype", "seed"),
    }


def _distill_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    if not (arm.start / "config.json").exists():
        raise RadistillError(f"{arm.start}: no such folder; run `radistill convert` first")
    return {
        "convert": _convert_inputs(context, arm),
        "teacher": source_signature(context.recipe.teacher) if context.recipe.teacher else None,
        "align_train": hash_file(_data(context, "train", "align")) if arm.align else None,
        "train": hash_file(_data(context, "train", "distill")),
        "heldout": hash_file(_data(context, "heldout", "distill")),
        "align": _own_settings(arm.align),
        "distill": _own_settings(arm.distill),
    }


def _finetune_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    assert arm.finetune is not None
    if not (arm.distilled / "config.json").exists():
        raise RadistillError(f"{arm.distilled}: no such folder; run `radistill distill` first")
    return {
        "distill": _distill_inputs(context, arm),
        "finetune": _own_settings(arm.finetune),
        "train": hash_file(_data(context, "train", "finetune")),
        "heldout": hash_file(_data(context, "heldout", "finetune")),
    }


def _own_settings(section: AlignStage | DistillStage | FinetuneStage | None) -> dict[str, Any] | None:
    """A section's settings without its data, whose text counts by its hash."""
    return section.model_dump(mode="json", exclude={"data"}) if section is not None else None


def _align_settings(arm: Arm) -> AlignSettings:
    assert arm.align is not None  # the recipe is checked for it
    return AlignSettings.model_validate(arm.align.model_dump(exclude={"data"}))


def _align(context: Context, arm: Arm, student: Model) -> Alignment:
    """Fit the blocks of `student`, or put back those that were fitted before."""
    return align(
        student,
        context.base,
        context.splits_of("align").documents("train"),
        _align_settings(arm),
        replace=Plan.load(arm.plan).replace,
        seed=context.recipe.seed,
        folder=arm.folder / "aligned",
    )


def _base_answers(context: Context) -> list[tuple[int, ...]] | None:
    """The held-out responses, if they are what the base would answer again."""
    recipe = context.recipe
    same = (
        recipe.teacher is None
        and recipe.data.responses.source == "teacher"
        and recipe.data.responses.temperature == 0
        and recipe.data.responses.max_new_tokens == recipe.evaluate.max_new_tokens
    )
    if not same:
        return None
    documents = context.splits.documents("heldout")
    return [document.tokens[document.response_start :] for document in documents]


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
        cache=context.path / "answers" / f"{name}.jsonl",
        name=name,
    )


def _prompt(context: Context, document: Document) -> str:
    tokens = list(document.tokens[: document.response_start])
    return str(context.base.tokenizer.decode(tokens, skip_special_tokens=True))


def _samples(context: Context, results: dict[str, Evaluation]) -> list[dict[str, str]]:
    records = context.splits.heldout[: context.recipe.evaluate.samples]
    return [
        {"prompt": _prompt(context, record.document)}
        | {name: result.answers[row] for name, result in results.items() if result.answers}
        for row, record in enumerate(records)
    ]
