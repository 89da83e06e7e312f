"""The learning rate of a hybrid's new blocks, found by short trainings."""

from collections.abc import Callable
from pathlib import Path

from radistill.console import note
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.distill import DistillResult
from radistill.distillation.rates import best_rate
from radistill.distillation.settings import DistillSettings
from radistill.errors import TrainingDivergedError
from radistill.files import hash_json, read_kept, write_json, write_kept
from radistill.pipeline.context import Context
from radistill.runs.arms import Arm

_FEWEST = 10
"""Steps of a short training, if the whole one has so many."""


def with_best_rate(
    context: Context,
    arm: Arm,
    settings: DistillSettings,
    train: Callable[[DistillSettings, Path], DistillResult],
    inputs: object,
) -> DistillSettings:
    """The settings of `distill` with the rate after whose first steps the held-out KL is lowest.

    What a rate gave is kept, so that a killed search goes on. All processes must call it together.

    Args:
        context: the run.
        arm: whose blocks are trained.
        settings: of its `distill`, with a `rate_search`.
        train: trains it from its start, with other settings and in a folder of its own.
        inputs: what the whole training depends on.

    Raises:
        RadistillError: if no rate can be trained with.
    """
    files = context.files(arm)
    assert settings.rate_search is not None
    search = settings.rate_search
    # In fewer, most of them would be the warm-up, after which all rates look alike.
    steps = min(settings.steps, max(_FEWEST, round(search.share * settings.steps)))
    # Weights other than the new blocks' keep their share of the rate.
    others = settings.other_learning_rate / settings.new_block_learning_rate

    def at(rate: float) -> dict[str, float]:
        return {"new_block_learning_rate": rate, "other_learning_rate": rate * others}

    def attempt(rate: float) -> float:
        folder, key = files.rates / f"{rate:g}", hash_json([inputs, rate, steps])
        record = folder / "kl.json"
        known: float | None = context.processes.decide(lambda: read_kept(record, key))
        if known is not None:
            if context.processes.is_main:
                remove_checkpoints(folder)  # a kill may have left them
            return known
        few = {"steps": steps, "eval_steps": steps, "keep": "last", "patience": None, "rate_search": None}
        try:
            result = train(settings.model_copy(update={**few, **at(rate)}), folder)
        except TrainingDivergedError:
            if context.processes.is_main:
                remove_checkpoints(folder)
            raise
        kl = result.evaluations[-1]["kl"]
        if context.processes.is_main:
            write_kept(record, key, kl)
            remove_checkpoints(folder)
        return kl

    best, found = best_rate(search.rates, attempt, search.further)
    if context.processes.is_main:
        write_json(files.rates / "rates.json", {"best": best, "kl": {f"{rate:g}": kl for rate, kl in found.items()}})
    note(f"{arm.name}: of {len(found)} rates, {best:g} has the lowest held-out KL after {steps} steps")
    return settings.model_copy(update={"rate_search": None, **at(best)})
