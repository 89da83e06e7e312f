"""What each step of a run depends on: while that is as it was, and what the step left too, it is not done again."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from radistill.conversion import TARGETS
from radistill.data.records import RETRIEVAL, SPLITS
from radistill.data.settings import DataSettings
from radistill.diagnosis.selectors import Curve
from radistill.effects import counted
from radistill.errors import RadistillError
from radistill.files import hash_file
from radistill.models.anatomy import Component
from radistill.pipeline.context import Context
from radistill.pipeline.made import budget_of, distilled_of, plan_of, promised
from radistill.runs.arms import Arm
from radistill.runs.folder import hashes_of

_OF_ONE_OBJECTIVE = {"context_length": "throughput-modelled", "draft_length": "throughput-measured"}
"""Settings of the diagnosis that only this objective reads."""


def split_file(context: Context, split: str, stage: str | None = None) -> Path:
    """The file of a split: of the recipe's data, or of what `stage` reads.

    Raises:
        RadistillError: if it is not there, or not as the data stage has left it for this recipe.
    """
    stage = stage if stage in context.recipe.own_data else None
    path = context.folder.data(stage) / f"{split}.jsonl"
    if not path.exists():
        raise RadistillError(f"{path}: no such file; run `radistill data` first")
    step = f"data:{stage}" if stage else "data"
    settings = context.recipe.own_data[stage] if stage else context.recipe.data
    wanted = _data_settings(context, settings)
    inputs = context.folder.steps.get(step, {}).get("inputs")
    if (
        not isinstance(inputs, dict)
        or any(inputs.get(name) != value for name, value in wanted.items())
        or not context.folder.is_current(step, inputs, splits_in(path.parent, settings))
    ):
        raise RadistillError(
            f"{path.parent}: what `data` has left there is of another recipe, damaged or unfinished; run `radistill "
            "data` with this one first"
        )
    return path


def splits_in(folder: Path, settings: DataSettings) -> list[Path]:
    """What the data stage leaves."""
    splits = SPLITS if settings.retrieval is None else (*SPLITS, *RETRIEVAL)
    return [folder / f"{split}.jsonl" for split in splits]


def data_inputs(context: Context, settings: DataSettings) -> dict[str, Any]:
    """Of `data`, and of the documents that a stage has for itself."""
    data = [getattr(settings, field, None) for field in ("path", "heldout_path", "id")]
    # Data that lies on this machine may change under the same name; a name on the hub has no hash.
    return {"data": [hashes_of(Path(place)) for place in data if place], **_data_settings(context, settings)}


def _data_settings(context: Context, settings: DataSettings) -> dict[str, Any]:
    recipe = context.recipe
    models = [context.signature(source) for source in (recipe.model, recipe.teacher) if source]
    return {"models": models, "settings": counted(settings), **context.settings_of("dtype", "seed")}


def diagnose_inputs(context: Context, arm: Arm, with_budget: bool = True) -> dict[str, Any]:
    """Of `diagnose`: two hybrids with the same have the same plan."""
    settings = context.recipe.diagnose
    goes = TARGETS[arm.target.kind].goes
    unread = [field for field, objective in _OF_ONE_OBJECTIVE.items() if objective != settings.objective]
    return {
        "model": context.signature(context.recipe.model),
        "selector": counted(arm.selector),
        "calibration": _split(context, "calibration"),
        **_retrieval_inputs(context, "calibration"),
        "settings": counted(settings, "selector", "by", "budget", "keep", "penalty", *unread),
        "by": arm.by,
        "penalty": arm.penalty,
        "budget": budget_of(context, arm) if with_budget else None,
        "blocks": _blocks_inputs(context, arm) if arm.by == "replaceability" else None,
        **({} if goes == (Component.ATTENTION,) else {"goes": list(goes)}),
        **context.settings_of("dtype", "seed"),
    }


def tradeoff_inputs(context: Context, selector: Curve) -> dict[str, Any]:
    """Of `tradeoff`."""
    return {
        "search": diagnose_inputs(context, context.hybrids[0], with_budget=False) | {"selector": counted(selector)},
        "heldout": _split(context, "heldout"),
        **_retrieval_inputs(context, "heldout"),
        "target": counted(context.recipe.target),
        "keep": promised(context.recipe),
    }


def promise_inputs(context: Context) -> dict[str, Any]:
    """Of the hybrids that are trained for the tasks of `diagnose.keep`."""
    recipe, main = context.recipe, context.hybrids[0]
    assert recipe.diagnose.keep is not None
    stages = {stage: own for stage in ("align", "distill", "finetune") if (own := getattr(main, stage)) is not None}
    return {
        "tradeoff": hash_file(context.folder.tradeoff),
        "keep": recipe.diagnose.keep.tasks,
        "evaluate": counted(recipe.evaluate),
        "stages": {stage: counted(own) for stage, own in stages.items()},
        **{split: {stage: _split(context, split, stage) for stage in stages} for split in ("train", "heldout")},
        "teacher": context.signature(main.teacher) if main.teacher else None,
        "target": counted(main.target),
        "init": main.init,
    }


def _retrieval_inputs(context: Context, split: str) -> dict[str, str]:
    return {} if context.recipe.data.retrieval is None else {"retrieval": _split(context, f"{split}_retrieval")}


def _split(context: Context, split: str, stage: str | None = None) -> str:
    return hash_file(split_file(context, split, stage))


def _counted(settings: BaseModel | None) -> dict[str, Any] | None:
    return None if settings is None else counted(settings)


def _blocks_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    return {
        "train": _split(context, "train", "align"),
        "align": _counted(arm.align),
        "target": counted(arm.target),
        "init": arm.init,
    }


def convert_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    """Of `convert`.

    Raises:
        RadistillError: if there is no plan yet, or a damaged one.
    """
    return {
        "model": context.signature(context.recipe.model),
        "replace": plan_of(context, arm).replace,
        "target": counted(arm.target),
        "init": arm.init,
        **({"teacher": context.signature(arm.teacher)} if arm.sees and arm.teacher else {}),
        **context.settings_of("dtype", "seed"),
    }


def distill_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    """Of `distill`.

    Raises:
        RadistillError: if nothing has been converted yet.
    """
    start = context.files(arm).start
    if not (start / "config.json").exists():
        raise RadistillError(f"{start}: no such folder; run `radistill convert` first")
    select = arm.distill.select if arm.distill else None
    connect = (
        {"connect": counted(arm.connect), "connect_train": _split(context, "train", "connect")} if arm.connect else {}
    )
    return {
        "convert": convert_inputs(context, arm),
        "teacher": context.signature(arm.teacher) if arm.teacher else None,
        "align_train": _split(context, "train", "align") if arm.align else None,
        "train": _split(context, "train", "distill"),
        "heldout": _split(context, "heldout", "distill"),
        "align": _counted(arm.align),
        "distill": _counted(arm.distill),
        **connect,
        **({} if select is None else {"reference": context.signature(select.reference)}),
    }


def finetune_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    """Of `finetune`.

    Raises:
        RadistillError: if nothing has been distilled yet.
    """
    distilled = distilled_of(context, arm)
    if not (distilled / "config.json").exists():
        raise RadistillError(f"{distilled}: no such folder; run `radistill distill` first")
    return {
        "distill": distill_inputs(context, arm),
        "finetune": _counted(arm.finetune),
        "train": _split(context, "train", "finetune"),
        "heldout": _split(context, "heldout", "finetune"),
    }


def evaluate_inputs(context: Context) -> dict[str, Any]:
    """Of `evaluate`; names of arms count, because the results have them."""
    return {
        "evaluate": counted(context.recipe.evaluate),
        "arms": {
            arm.name: (finetune_inputs if arm.finetune else distill_inputs)(context, arm) for arm in context.hybrids
        },
        "heldout": _split(context, "heldout"),
    }
