"""What a recipe will cost, before it costs anything: `radistill run RECIPE --dry-run`."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from radistill.conversion.targets import TARGETS
from radistill.data.settings import DataSettings
from radistill.diagnosis.plan import draft_of
from radistill.diagnosis.selectors import All, Curve
from radistill.diagnosis.selectors.all import EQUAL_PASSES
from radistill.distillation.on_policy import OnPolicySettings
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.loading import DTYPES
from radistill.pipeline.memory import (
    Lengths,
    align_bytes_per_layer,
    align_passes,
    disk_bytes,
    fitted_blocks,
    lengths_in_stages,
    memory_of_stages,
    reading,
    retrieval_tokens,
    store_bytes,
    trained_parameters,
    trainings,
)
from radistill.pipeline.preflight import check
from radistill.pipeline.shapes import HybridShape, count_parameters, hybrid_shape
from radistill.runs.arms import Arm
from radistill.runs.recipe import Recipe
from radistill.runs.sections import DiagnoseSettings
from radistill.texts import human_bytes


@dataclass(frozen=True)
class ModelEstimate:
    """One model of a run.

    Attributes:
        role: base, teacher, hybrid, or the name of an arm.
        source: what the recipe calls it, or the target.
        parameters: by component.
        layers: decoder layers.
        attention_layers: how many of them have attention.
        kv_bytes_per_token: growth of the KV cache of one sequence, in bfloat16.
        ssm_state_bytes: recurrent state of one sequence at any length, in float32.
        new_parameters: parameters of new blocks.
        trained_parameters: parameters that end-to-end training changes.
    """

    role: str
    source: str
    parameters: dict[str, int]
    layers: int
    attention_layers: int
    kv_bytes_per_token: int
    ssm_state_bytes: int
    new_parameters: int = 0
    trained_parameters: int = 0

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class Work:
    """What the stages have to do for the hybrid, at most.

    Attributes:
        documents: by split; calibration documents that are training documents too are not counted twice.
        document_tokens: longest document.
        generated_tokens: that the teacher writes, if it answers every prompt; 0 if the data brings the responses.
        by: whether the diagnosis judges layers by redundancy or by replaceability.
        draft: what the drafts do with the layers that it judges.
        passes: forward passes of the diagnosis, of those that start at the first layer.
        calibration_tokens: in one of them.
        pass_seconds: of one of them, by the speed of a matrix product on this machine.
        minutes: what the search may take; None is no limit.
        align_blocks: blocks that are fitted: those of the hybrid, or one for every attention, among which the diagnosis
            chooses; 0 without alignment.
        align_tokens: through each of them.
        align_passes: passes of the base over the training documents, for recording.
        steps: of end-to-end distillation.
        step_tokens: in one of them.
        on_policy: how many of its batches the student writes; None is none.
        finetune_steps: of next-token training.
        finetune_step_tokens: in one of them.
    """

    documents: dict[str, int]
    document_tokens: int
    generated_tokens: int
    by: str
    draft: str
    passes: int
    calibration_tokens: int
    pass_seconds: float
    minutes: float | None
    align_blocks: int
    align_tokens: int
    align_passes: int
    steps: int
    step_tokens: int
    on_policy: OnPolicySettings | None
    finetune_steps: int
    finetune_step_tokens: int

    @property
    def distill_tokens(self) -> int:
        """Tokens of all end-to-end steps."""
        return self.steps * self.step_tokens


@dataclass(frozen=True)
class Estimate:
    """Everything that a dry run tells.

    Attributes:
        models: base, teacher (if it is another model), hybrid, and each arm.
        memory: of the hybrid's stages: bytes by stage and term, see `memory.TERMS`.
        disk: bytes in the run folder, arms included.
        work: tokens and passes.
        warnings: what a run on this machine would refuse, and what is likely to fail.
    """

    models: list[ModelEstimate]
    memory: dict[str, dict[str, int]]
    disk: int
    work: Work
    warnings: list[str]


def estimate(recipe: Recipe, out: Path | None = None) -> Estimate:
    """Check a recipe and estimate parameters, memory and tokens from configs alone.

    Args:
        recipe: what a run would do.
        out: its folder, on whose disk there should be room; None looks at no disk.

    Raises:
        RadistillError: for what a run would refuse on any machine.
    """
    checked = check(recipe)
    recipe = checked.recipe
    trust = recipe.trust_remote_code
    base = anatomy_of(checked.base)
    if recipe.diagnose.budget == "auto":  # it may turn out to be all that the target allows
        most = len(base.attention_layers) - max(1, TARGETS[recipe.target.kind].keeps)
        recipe = recipe.model_copy(update={"diagnose": recipe.diagnose.model_copy(update={"budget": most})})
    bounds = lengths_in_stages(recipe, checked.base.max_position_embeddings)
    models = [_model("base", recipe.model, base, count_parameters(checked.base, trust))]
    teacher = None
    if checked.teacher is not None:
        teacher = anatomy_of(checked.teacher)
        models.append(_model("teacher", str(recipe.teacher), teacher, count_parameters(checked.teacher, trust)))
    loaded = {f"{model.role} weights": model.total for model in models}

    align, read = recipe.align, {stage: reading(recipe, stage) for stage in ("align", "distill", "finetune")}
    build = partial(
        hybrid_shape,
        checked.base,
        recipe.target,
        recipe.diagnose.sizes[-1],
        dtype=DTYPES[recipe.dtype],
        on_cpu=recipe.device == "cpu" or (recipe.device == "auto" and not torch.cuda.is_available()),
        trust_remote_code=trust,
    )
    shape = build(block_step=bounds["align"].batch(align.tokens_per_batch, read["align"].data.train) if align else None)
    step_bytes = {
        training.section: build(
            step=bounds[training.section].batch(training.tokens_per_batch, read[training.section].data.train),
            train_everything=training.trains(new=False),
            precision=training.precision,
            recompute=training.gradient_checkpointing,
        ).step_bytes
        for training in trainings(recipe)
    }
    counted = {stage: kept or 0 for stage, kept in step_bytes.items()}
    memory = memory_of_stages(recipe, base, shape, bounds, counted, loaded, teacher)
    store = store_bytes(read["distill"], base, bounds["store"])
    disk = disk_bytes(recipe, base, shape) + store
    hybrid = _model("hybrid", recipe.target.kind, shape.anatomy, shape.parameters)
    models.append(replace(hybrid, new_parameters=shape.new, trained_parameters=_most_trained(recipe, shape)))

    for arm in recipe.hybrids[1:]:
        own = _recipe_of(recipe, arm)
        shape = hybrid_shape(
            checked.base, arm.target, own.diagnose.sizes[-1], dtype=DTYPES[recipe.dtype], trust_remote_code=trust
        )
        disk += disk_bytes(own, base, shape)
        model = _model(arm.name, arm.target.kind, shape.anatomy, shape.parameters)
        models.append(replace(model, new_parameters=shape.new, trained_parameters=_most_trained(own, shape)))
    warnings = [*checked.warnings, *_memory_warnings(read["align"], base, bounds["align"])]
    warnings += _memory_of_machine_warnings(recipe, memory) + _disk_warnings(out, disk, store)
    if None in step_bytes.values():
        warnings.append("activations of a step are not counted for a mixture of experts: they depend on the data")
    return Estimate(models, memory, disk, _work(recipe, base, models[0].total, bounds), warnings)


def _most_trained(recipe: Recipe, shape: HybridShape) -> int:
    return max((trained_parameters(training, shape) for training in trainings(recipe)), default=0)


def diagnosis_passes(settings: DiagnoseSettings, anatomy: Anatomy) -> int:
    """Passes over the calibration data, at most: the full model's, those of the search, and of each result."""
    limit = settings.passes or (EQUAL_PASSES if isinstance(settings.selector, All) else math.inf)
    chosen = settings.selector
    selectors = chosen.each(limit, settings.by) if isinstance(chosen, All) else [chosen]
    if settings.tradeoff and not isinstance(chosen, Curve):
        selectors.append(Curve())
    needed = [selector.most_passes(len(anatomy.attention_layers), settings.sizes) for selector in selectors]
    return 1 + sum(1 + math.ceil(min(passes, limit)) for passes in needed)


def _model(role: str, source: str, anatomy: Anatomy, parameters: dict[str, int]) -> ModelEstimate:
    return ModelEstimate(
        role=role,
        source=source,
        parameters=parameters,
        layers=anatomy.num_layers,
        attention_layers=len(anatomy.attention_layers),
        kv_bytes_per_token=anatomy.kv_bytes_per_token(),
        ssm_state_bytes=anatomy.ssm_state_bytes(),
    )


def _recipe_of(recipe: Recipe, arm: Arm) -> Recipe:
    """What an arm's stages see of the recipe."""
    update = {"by": arm.by, "budget": arm.budget or recipe.diagnose.sizes[-1]}
    diagnose = recipe.diagnose.model_copy(update=update)
    return recipe.model_copy(update={"diagnose": diagnose, "align": arm.align, "distill": arm.distill})


def multiplications_per_second(width: int, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """How many multiplications, each with an addition, a CPU here does in matrix products of a model's size."""
    rows, matrix = torch.randn(1024, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    rows @ matrix
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        rows @ matrix
        count += 1
    return count * rows.numel() * matrix.shape[1] / taken


def _work(recipe: Recipe, base: Anatomy, parameters: int, bounds: dict[str, Lengths]) -> Work:
    data, align, distill, finetune = recipe.data, recipe.align, recipe.distill, recipe.finetune
    documents = {"training": data.train, "held-out": data.heldout}
    if data.calibration_from == "own":
        documents["calibration"] = data.calibration
    written = sum(documents.values()) * _written(data)
    for stage, own in recipe.own_data.items():
        documents[_OWN_DOCUMENTS[stage]] = own.train + own.heldout
        written += (own.train + own.heldout) * _written(own)
    read = {stage: reading(recipe, stage) for stage in ("align", "distill", "finetune")}
    step_tokens = {
        training.section: training.gradient_accumulation
        * bounds[training.section].tokens(training.tokens_per_batch, read[training.section].data.train)
        for training in trainings(recipe)
    }
    calibration_tokens = data.calibration * bounds["data"].document + retrieval_tokens(data, "calibration")
    pace = multiplications_per_second(base.hidden_size, DTYPES[recipe.dtype])
    return Work(
        documents=documents,
        document_tokens=max(found.document for stage, found in bounds.items() if stage != "distill"),
        generated_tokens=written,
        by=recipe.diagnose.by,
        draft=draft_of(recipe.diagnose.by, TARGETS[recipe.target.kind].goes),
        passes=diagnosis_passes(recipe.diagnose, base),
        calibration_tokens=calibration_tokens,
        pass_seconds=calibration_tokens * parameters / pace,
        minutes=recipe.diagnose.minutes,
        align_blocks=fitted_blocks(recipe, base),
        align_tokens=(
            align.steps * bounds["align"].tokens(align.tokens_per_batch, read["align"].data.train) if align else 0
        ),
        align_passes=align_passes(read["align"], base, bounds["align"]),
        steps=distill.steps if distill else 0,
        step_tokens=step_tokens.get("distill", 0),
        on_policy=distill.on_policy if distill else None,
        finetune_steps=finetune.steps if finetune else 0,
        finetune_step_tokens=step_tokens.get("finetune", 0),
    )


_OWN_DOCUMENTS = {"align": "alignment", "distill": "distillation", "finetune": "fine-tuning"}


def _written(data: DataSettings) -> int:
    """Tokens that the teacher writes for one example, at most."""
    return 0 if data.responses.source == "data" else data.responses.max_new_tokens


def _memory_warnings(recipe: Recipe, base: Anatomy, bounds: Lengths) -> list[str]:
    if recipe.align is None:
        return []
    room, needed = recipe.align.memory_gib * 2**30, align_bytes_per_layer(recipe, base, bounds)
    if needed <= room:
        return []
    return [
        f"align.memory_gib is {recipe.align.memory_gib:g}, but one layer's activations may take {needed / 2**30:.1f} "
        f"GiB: {recipe.data.train:,} documents of up to {bounds.document:,} tokens; lower data.train or data.max_length"
    ]


def _memory_of_machine_warnings(recipe: Recipe, memory: dict[str, dict[str, int]]) -> list[str]:
    if recipe.device != "cpu" and torch.cuda.is_available():
        room, where = torch.cuda.get_device_properties(0).total_memory, "a GPU here"
    elif recipe.device != "cuda":
        room, where = psutil.virtual_memory().total, "this machine"
    else:
        return []
    stage = max(memory, key=lambda stage: sum(memory[stage].values()))
    needed, most = sum(memory[stage].values()), max(memory[stage], key=memory[stage].__getitem__)
    if needed <= room:
        return []
    return [
        f"{stage} may take {human_bytes(needed)} of memory, most of it {most}, but {where} has {human_bytes(room)}; "
        f"lower data.max_length, the number of documents, or {stage}'s tokens_per_batch or batch_size"
    ]


def _disk_warnings(out: Path | None, needed: int, store: int) -> list[str]:
    if out is None:
        return []
    folder = out.expanduser().resolve()
    disk = next(place for place in (folder, *folder.parents) if place.is_dir())
    # What the folder holds already will not be written a second time.
    room = psutil.disk_usage(str(disk)).free + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed <= room:
        return []
    way_out = "lower data.train or distill.teacher_store.top_k" if store > room else "choose another disk with --out"
    return [f"a run may write {human_bytes(needed)}, but {disk} has room for {human_bytes(room)}; {way_out}"]
