"""What a recipe will cost, before it costs anything: `radistill run RECIPE --dry-run`."""

import math
from dataclasses import dataclass

import torch
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedConfig

from radistill.conversion.targets import TargetSettings
from radistill.diagnosis.selectors import Bayes, Selector
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.inspection import human_bytes, human_count
from radistill.models.loading import DTYPES
from radistill.pipeline.memory import (
    FORMULAS,
    Lengths,
    align_bytes_per_layer,
    disk_bytes,
    layers_at_once,
    lengths,
    memory_of_stages,
    trained_parameters,
)
from radistill.pipeline.preflight import check
from radistill.pipeline.recipe import Recipe
from radistill.pipeline.shapes import HybridShape, count_parameters, hybrid_shape

WIDTH = 100


@dataclass(frozen=True)
class ModelEstimate:
    """One model of a run.

    Attributes:
        role: base, teacher, hybrid or baseline.
        source: what the recipe calls it, or the target.
        parameters: by component.
        attention_layers: layers that have attention, of `layers`.
        kv_bytes_per_token: growth of the KV cache of one sequence, in bfloat16.
        ssm_state_bytes: recurrent state of one sequence at any length, in float32.
    """

    role: str
    source: str
    parameters: dict[str, int]
    layers: int
    attention_layers: int
    kv_bytes_per_token: int
    ssm_state_bytes: int

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class HybridEstimate:
    """One student of a run.

    Attributes:
        model: its size.
        new_parameters: parameters of the new blocks.
        trained_parameters: parameters that end-to-end training changes; 0 if that stage is left out.
        memory: bytes by stage and term.
        disk: bytes in the run folder.
        judged_sets: sets of layers that the search judges, at most.
        aligned: whether its blocks are fitted layer by layer.
        steps: end-to-end steps.
    """

    model: ModelEstimate
    new_parameters: int
    trained_parameters: int
    memory: dict[str, dict[str, int]]
    disk: int
    judged_sets: int
    aligned: bool
    steps: int


@dataclass(frozen=True)
class Work:
    """What the stages have to do, at most.

    Attributes:
        documents: by split; calibration documents that are training documents too count as 0.
        document_tokens: longest document.
        generated_tokens: that the teacher writes, if it answers every prompt; 0 if the data brings the responses.
        calibration_tokens: in one pass of the diagnosis.
        align_tokens: through blocks that are fitted.
        align_passes: passes of the base over the training documents, for recording.
        step_tokens: in one optimiser step.
        distill_tokens: in all of them.
    """

    documents: dict[str, int]
    document_tokens: int
    generated_tokens: int
    calibration_tokens: int
    align_tokens: int
    align_passes: int
    step_tokens: int
    distill_tokens: int


@dataclass(frozen=True)
class Estimate:
    """Everything that a dry run tells.

    Attributes:
        models: the base and, if another model teaches, the teacher.
        hybrids: the hybrid and, if the recipe has one, its baseline.
        work: tokens and passes, for the hybrid.
        warnings: what a run on this machine would refuse.
    """

    models: list[ModelEstimate]
    hybrids: list[HybridEstimate]
    work: Work
    warnings: list[str]


def estimate(recipe: Recipe) -> Estimate:
    """Check a recipe and estimate parameters, memory and tokens from configs alone.

    Raises:
        RadistillError: for what a run would refuse on any machine.
    """
    checked = check(recipe)
    base = anatomy_of(checked.base)
    base_model = _model("base", recipe.model, base, count_parameters(checked.base, recipe.trust_remote_code))
    teacher_model = None
    if checked.teacher is not None and recipe.teacher is not None:
        counts = count_parameters(checked.teacher, recipe.trust_remote_code)
        teacher_model = _model("teacher", recipe.teacher, anatomy_of(checked.teacher), counts)
    bounds = lengths(recipe, checked.base.max_position_embeddings)

    def hybrid(
        role: str, target: TargetSettings, selector: Selector, aligned: bool, steps: int | None
    ) -> HybridEstimate:
        arm = recipe if steps is None or recipe.distill is None else _with_steps(recipe, steps)
        shape = _shape(arm, checked.base, target, bounds)
        memory = memory_of_stages(
            arm,
            base,
            shape,
            bounds,
            base_parameters=base_model.total,
            teacher_parameters=teacher_model.total if teacher_model else None,
            with_align=aligned,
        )
        return HybridEstimate(
            model=_model(role, target.kind, shape.anatomy, shape.parameters),
            new_parameters=shape.new,
            trained_parameters=trained_parameters(arm, shape),
            memory=memory,
            disk=disk_bytes(arm, shape, aligned),
            judged_sets=judged_sets(selector, base),
            aligned=aligned,
            steps=arm.distill.steps if arm.distill else 0,
        )

    hybrids = [hybrid("hybrid", recipe.convert.target, recipe.diagnose.selector, recipe.align is not None, None)]
    if (baseline := recipe.baseline) is not None:
        aligned = baseline.align and recipe.align is not None
        hybrids.append(hybrid("baseline", baseline.target, baseline.selector, aligned, baseline.steps))
    warnings = [*checked.warnings, *_memory_warnings(recipe, base, bounds)]
    models = [base_model] if teacher_model is None else [base_model, teacher_model]
    return Estimate(models, hybrids, _work(recipe, base, bounds), warnings)


def judged_sets(selector: Selector, anatomy: Anatomy) -> int:
    """Sets of skipped layers that a selector has judged, at most, and the plan's own."""
    if isinstance(selector, Bayes):
        return selector.trials + (len(anatomy.attention_layers) if selector.warm_start else 0) + 1
    return 1


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


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of an arm that trains for another number of steps, 0 being none."""
    assert recipe.distill is not None
    distill = recipe.distill.model_copy(update={"steps": steps}) if steps else None
    return recipe.model_copy(update={"distill": distill})


def _shape(recipe: Recipe, config: PreTrainedConfig, target: TargetSettings, bounds: Lengths) -> HybridShape:
    on_cpu = recipe.device == "cpu" or (recipe.device == "auto" and not torch.cuda.is_available())
    distill, align = recipe.distill, recipe.align
    return hybrid_shape(
        config,
        target,
        recipe.diagnose.budget,
        dtype=DTYPES[recipe.dtype],
        on_cpu=on_cpu,
        step=bounds.batch(distill.tokens_per_batch if distill else 1, recipe.data.train),
        block_step=bounds.batch(align.tokens_per_batch if align else 1, recipe.data.train),
        train_everything=distill is not None and distill.other_learning_rate > 0,
        trust_remote_code=recipe.trust_remote_code,
    )


def _work(recipe: Recipe, base: Anatomy, bounds: Lengths) -> Work:
    data, align, distill = recipe.data, recipe.align, recipe.distill
    own = data.calibration if data.calibration_from == "own" else 0
    documents = {"train": data.train, "calibration": own, "heldout": data.heldout}
    writes = data.responses.source != "data"
    align_batch = bounds.batch(align.tokens_per_batch, data.train) if align else None
    step = bounds.batch(distill.tokens_per_batch, data.train) if distill else None
    step_tokens = _padded(step.rows * step.time, distill.tokens_per_batch) * distill.gradient_accumulation if step and distill else 0
    return Work(
        documents=documents,
        document_tokens=bounds.document,
        generated_tokens=sum(documents.values()) * data.responses.max_new_tokens if writes else 0,
        calibration_tokens=data.calibration * bounds.document,
        align_tokens=0,
        align_passes=math.ceil(recipe.diagnose.budget / layers_at_once(recipe, base, bounds)) if align else 0,
        step_tokens=step_tokens,
        distill_tokens=step_tokens * distill.steps if distill else 0,
    )
