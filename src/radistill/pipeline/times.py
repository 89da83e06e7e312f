"""How long the stages of a run take, at most, in one process and in several: by arithmetic, without running any."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from radistill.distillation.settings import TrainingSettings
from radistill.models.loading import DTYPES
from radistill.pipeline.memory import trained_parameters
from radistill.pipeline.shapes import HybridShape
from radistill.pipeline.work import Work
from radistill.runs.recipe import Recipe


@dataclass(frozen=True)
class Speed:
    """What is taken for the speed of a device.

    Attributes:
        device: in words.
        products: multiplications, each with an addition, in a second of large matrix products.
        reads: bytes of weights and caches in a second; infinite where products are what takes long.
        layer: least seconds of a layer in a decoding step, in transformers' torch code.
        step: least seconds of a step in the fit of a block.
    """

    device: str
    products: float
    reads: float = math.inf
    layer: float = 0.0
    step: float = 0.0


ASSUMED_GPU = Speed(
    "a GPU that is assumed to do 400 TFLOP/s in bfloat16, to read 2.5 TB/s, and to need 0.7 ms for a layer when it "
    "decodes and 20 ms for a step of a fit",
    products=2e14,
    reads=2.5e12,
    layer=7e-4,
    step=0.02,
)
"""Half of what the makers of an H100 state for products, three quarters for reading; not measured by us."""


@dataclass(frozen=True)
class StageTime:
    """What a stage takes.

    Attributes:
        stage: which, or which part of one.
        seconds: in one process.
        units: batches or blocks, which are dealt out to the processes; one is not split.
        per_step: for training, the batches of an optimiser step, which the number of processes must divide.
    """

    stage: str
    seconds: float
    units: int
    per_step: int | None = None

    def in_processes(self, count: int) -> float | None:
        """Seconds where `count` processes share the units; None if they cannot."""
        if self.per_step is not None:
            return None if self.per_step % count else self.seconds / count
        return self.seconds * math.ceil(self.units / count) / self.units


def speed_of(recipe: Recipe, width: int) -> Speed:
    """Of the CPU here, measured, unless the recipe's device is a GPU: then of one that is assumed."""
    if recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available()):
        return ASSUMED_GPU
    return Speed("a CPU like this one", multiplications_per_second(width, DTYPES[recipe.dtype]))


def multiplications_per_second(width: int, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """How many multiplications, each with an addition, a CPU here does in matrix products of a model's size."""
    rows, matrix = torch.randn(1024, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    rows @ matrix
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        rows @ matrix
        count += 1
    return count * rows.numel() * matrix.shape[1] / taken


def times_of_stages(work: Work, parameters: Mapping[str, int], shape: HybridShape, speed: Speed) -> list[StageTime]:
    """What each stage takes, for documents that are all as long as allowed; the tasks of `evaluate` are not counted.

    A pass multiplies each token by each weight, a gradient by the activations takes as much, and so does one by the
    trained weights. A decoding step reads all weights and the cache of its batch.

    Args:
        work: what they do.
        parameters: by model: `base`, and `teacher` if it is another one.
        shape: of the hybrid.
        speed: of the device.
    """
    recipe, weights, longest = work.recipe, parameters["base"], work.lengths("data").document
    teacher = parameters.get("teacher", weights)
    found: list[StageTime] = []
    answers = [
        _generation(work, speed, teacher, count, data.responses.batch_size, data.responses.max_new_tokens)
        for count, data in work.written
    ]
    if answers:
        found.append(StageTime("data", sum(seconds for seconds, _ in answers), sum(units for _, units in answers)))
    if (align := recipe.align) is not None:
        tokens = min(work.reads("align").train * work.lengths("align").document, align.steps * align.tokens_per_batch)
        a_batch = work.tokens("align", align.tokens_per_batch)
        found.append(StageTime("activations", tokens * weights / speed.products, math.ceil(tokens / a_batch)))
        a_step = max(3 * shape.block * a_batch / speed.products, speed.step)
        found.append(StageTime("fits", work.align_blocks * align.steps * a_step, work.align_blocks))
    tokens = work.calibration_tokens
    seconds = work.passes * tokens * weights / speed.products
    if recipe.diagnose.minutes is not None:
        seconds = min(seconds, 60 * recipe.diagnose.minutes)
    a_batch = work.lengths("data").tokens(recipe.diagnose.tokens_per_batch, recipe.data.calibration)
    found.append(StageTime("search", seconds, max(1, math.ceil(tokens / a_batch))))
    for training in work.trainings:
        seconds = training.steps * work.step_tokens(training) * _products(training, teacher, shape) / speed.products
        units = training.steps * training.gradient_accumulation
        found.append(StageTime(training.section, seconds, units, training.gradient_accumulation))
    models, settings = 2 + len(recipe.hybrids), recipe.evaluate  # the base, the draft, and the hybrids
    tokens, count = recipe.data.heldout * longest, recipe.data.heldout
    seconds = models * tokens * 2 * weights / speed.products
    units = models * math.ceil(tokens / work.lengths("data").tokens(settings.tokens_per_batch, count))
    if settings.exact_match:
        one, groups = _generation(work, speed, weights, count, settings.batch_size, settings.max_new_tokens)
        seconds, units = seconds + models * one, units + models * groups
    found.append(StageTime("evaluate", seconds, units))
    return found


def _products(training: TrainingSettings, teacher: int, shape: HybridShape) -> int:
    """Multiplications for a token of a training."""
    passes = (3 if training.gradient_checkpointing else 2) * sum(shape.parameters.values())
    return passes + trained_parameters(training, shape) + (teacher if training.taught else 0)


def _generation(work: Work, speed: Speed, weights: int, count: int, batch: int, steps: int) -> tuple[float, int]:
    """Seconds and batches of `count` answers of `steps` tokens each."""
    rows = min(batch, count)
    cache = rows * work.lengths("data").document * work.base.kv_bytes_per_token(work.number)
    read = (weights * work.number + cache) / speed.reads
    a_step = max(rows * weights / speed.products, read, work.base.num_layers * speed.layer)
    groups = math.ceil(count / batch)
    return groups * steps * a_step, groups
