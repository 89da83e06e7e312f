"""What a recipe will cost, before it costs anything: `radistill run RECIPE --dry-run`."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from radistill.conversion.targets import TARGETS
from radistill.models.anatomy import Anatomy, anatomy_of
from radistill.models.loading import DTYPES
from radistill.pipeline.memory import (
    align_bytes_per_layer,
    disk_bytes,
    memory_of_stages,
    recorded_bytes,
    store_bytes,
    trained_parameters,
)
from radistill.pipeline.preflight import Checked, check
from radistill.pipeline.shapes import HybridShape, count_parameters, hybrid_shape, with_vision
from radistill.pipeline.times import StageTime, speed_of, times_of_stages
from radistill.pipeline.work import Work
from radistill.runs.arms import Arm
from radistill.runs.recipe import Recipe
from radistill.texts import human_bytes


@dataclass(frozen=True)
class ModelEstimate:
    """One model of a run.

    Attributes:
        role: base, teacher, hybrid, or the name of an arm.
        source: what the recipe calls it, or the target.
        anatomy: layers, and sizes of cache and states.
        parameters: by component.
        new_parameters: parameters of new blocks.
        trained_parameters: parameters that end-to-end training changes.
    """

    role: str
    source: str
    anatomy: Anatomy
    parameters: dict[str, int]
    new_parameters: int = 0
    trained_parameters: int = 0

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class Estimate:
    """Everything that a dry run tells.

    Attributes:
        models: base, teacher (if it is another model), hybrid, and each arm.
        memory: of the hybrid's stages: bytes by stage and term, see `memory.TERMS`.
        disk: bytes in the run folder, arms included.
        recorded: those of them that `align` records, because memory has no room for them.
        work: of the hybrid.
        times: of the hybrid's stages.
        processes: that share the work.
        device: whose speed the times are for.
        warnings: what a run on this machine would refuse, and what is likely to fail.
    """

    models: list[ModelEstimate]
    memory: dict[str, dict[str, int]]
    disk: int
    recorded: int
    work: Work
    times: list[StageTime]
    processes: int
    device: str
    warnings: list[str]


def estimate(recipe: Recipe, out: Path | None = None, processes: int = 1) -> Estimate:
    """Check a recipe and estimate parameters, memory and tokens from configs alone.

    Args:
        recipe: what a run would do.
        out: its folder, on whose disk there should be room; None looks at no disk.
        processes: that share the work.

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
    work = Work(recipe, base, checked.base.max_position_embeddings)
    models = [ModelEstimate("base", recipe.model, base, count_parameters(checked.base, trust))]
    teacher = None
    if checked.teacher is not None:
        teacher = anatomy_of(checked.teacher)
        models.append(ModelEstimate("teacher", str(recipe.teacher), teacher, count_parameters(checked.teacher, trust)))
    loaded = {f"{model.role} weights": model.total for model in models}

    align, dtype = recipe.align, DTYPES[recipe.dtype]
    on_cpu = recipe.device == "cpu" or (recipe.device == "auto" and not torch.cuda.is_available())
    build = partial(hybrid_shape, checked.base, dtype=dtype, trust_remote_code=trust)
    built = partial(build, recipe.target, recipe.diagnose.sizes[-1], on_cpu=on_cpu)
    shape = built(block_step=work.batch("align", align.tokens_per_batch) if align else None)
    step_bytes = {
        training.section: built(
            step=work.batch(training.section, training.tokens_per_batch),
            train_everything=training.trains(new=False),
            precision=training.precision,
            recompute=training.gradient_checkpointing,
        ).step_bytes
        for training in work.trainings
    }
    counted = {stage: kept or 0 for stage, kept in step_bytes.items()}
    shape = _seen(shape, recipe.hybrids[0], checked)
    memory = memory_of_stages(work, shape, counted, loaded, teacher, processes)
    store, recorded = store_bytes(work), recorded_bytes(work, processes)[1]
    disk = disk_bytes(work, shape) + store + recorded
    models.append(_hybrid("hybrid", recipe.target.kind, work, shape))
    speed = speed_of(recipe, base.hidden_size)
    times = times_of_stages(work, {model.role: model.total for model in models}, shape, speed)

    for arm in recipe.hybrids[1:]:
        own = replace(work, recipe=_recipe_of(recipe, arm))
        shape = _seen(build(arm.target, own.recipe.diagnose.sizes[-1]), arm, checked)
        disk += disk_bytes(own, shape)
        models.append(_hybrid(arm.name, arm.target.kind, own, shape))
    least = align_bytes_per_layer(work) if recorded else 0  # in more passes
    warnings = [*checked.warnings, *_memory_of_machine_warnings(recipe, memory)]
    warnings += _disk_warnings(out, disk - recorded + least, store)
    if None in step_bytes.values():
        warnings.append("activations of a step are not counted for a mixture of experts: they depend on the data")
    return Estimate(models, memory, disk, recorded, work, times, processes, speed.device, warnings)


def _seen(shape: HybridShape, arm: Arm, checked: Checked) -> HybridShape:
    """The shape with what a drafter that sees has beside its language model."""
    if not arm.sees or checked.teacher is None:
        return shape
    return with_vision(shape, checked.teacher, checked.base, (checked.recipe.model, str(arm.teacher)))


def _hybrid(role: str, kind: str, work: Work, shape: HybridShape) -> ModelEstimate:
    trained = max((trained_parameters(training, shape) for training in work.trainings), default=0)
    return ModelEstimate(role, kind, shape.anatomy, shape.parameters, shape.new, trained)


def _recipe_of(recipe: Recipe, arm: Arm) -> Recipe:
    """A recipe whose main hybrid, and only one, is this arm."""
    update = {"by": arm.by, "budget": arm.budget or recipe.diagnose.sizes[-1]}
    diagnose = recipe.diagnose.model_copy(update=update)
    trainings = {"align": arm.align, "distill": arm.distill, "finetune": arm.finetune}
    return recipe.model_copy(update={"diagnose": diagnose, **trainings, "arms": {}})


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
