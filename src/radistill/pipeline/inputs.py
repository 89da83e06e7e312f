"""What each step of a run depends on: a step whose inputs are as they were is not done again."""

from pathlib import Path
from typing import Any, Literal

from radistill.data.settings import DataSettings
from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.files import hash_file
from radistill.pipeline.context import Context, source_signature
from radistill.runs.arms import Arm
from radistill.runs.sections import AlignStage, DistillStage, FinetuneStage


def split_file(context: Context, split: str, stage: str | None = None) -> Path:
    """The file of a split: of the recipe's data, or of what `stage` reads.

    Raises:
        RadistillError: if it is not there.
    """
    path = (context.data_of(stage) if stage else context.folder.data()) / f"{split}.jsonl"
    if not path.exists():
        raise RadistillError(f"{path}: no such file; run `radistill data` first")
    return path


def data_inputs(context: Context, settings: DataSettings) -> dict[str, Any]:
    """Of `data`, and of the documents that a stage has for itself."""
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


def budget_of(context: Context, arm: Arm) -> int:
    """How many layers are to go. Where the search chooses how many, an arm has as many as the main hybrid."""
    return arm.budget or len(Plan.load(context.files(context.hybrids[0]).plan).replace)


def diagnose_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    """Of `diagnose`: two hybrids with the same have the same plan."""
    return {
        "model": source_signature(context.recipe.model),
        # By how many processes, and where they kept their study, makes no other plan of a finished one.
        "selector": arm.selector.model_dump(mode="json", exclude={"workers", "storage"}),
        "calibration": hash_file(split_file(context, "calibration")),
        "settings": context.recipe.diagnose.model_dump(mode="json", exclude={"selector", "by", "budget", "penalty"}),
        "by": arm.by,
        "penalty": arm.penalty,
        "budget": budget_of(context, arm),
        "blocks": _blocks_inputs(context, arm) if arm.by == "replaceability" else None,
        **context.settings_of("dtype", "seed"),
    }


def _blocks_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    return {
        "train": hash_file(split_file(context, "train", "align")),
        "align": _own_settings(arm.align),
        "target": arm.target.model_dump(mode="json"),
        "init": arm.init,
    }


def convert_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    """Of `convert`.

    Raises:
        RadistillError: if there is no plan yet.
    """
    plan = context.files(arm).plan
    if not plan.exists():
        raise RadistillError(f"{plan}: no such file; run `radistill diagnose` first")
    return {
        "model": source_signature(context.recipe.model),
        "replace": Plan.load(plan).replace,
        "target": arm.target.model_dump(mode="json"),
        "init": arm.init,
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
    return {
        "convert": convert_inputs(context, arm),
        "teacher": source_signature(arm.teacher) if arm.teacher else None,
        "align_train": hash_file(split_file(context, "train", "align")) if arm.align else None,
        "train": hash_file(split_file(context, "train", "distill")),
        "heldout": hash_file(split_file(context, "heldout", "distill")),
        "align": _own_settings(arm.align),
        "distill": _own_settings(arm.distill),
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
        "finetune": _own_settings(arm.finetune),
        "train": hash_file(split_file(context, "train", "finetune")),
        "heldout": hash_file(split_file(context, "heldout", "finetune")),
    }


def check_made(context: Context, arm: Arm, stage: Literal["convert", "distill", "finetune"], inputs: Any) -> None:
    """Refuse to go on from what `stage` has left of a hybrid, where that is of other inputs than the recipe's.

    Raises:
        RadistillError: naming the stage that has to be run.
    """
    fine_tuned = stage == "distill" and arm.finetune is None and context.files(arm).distilled.exists()
    if fine_tuned or not context.folder.is_current(f"{stage}:{arm.name}", inputs, []):
        raise RadistillError(
            f"{context.folder.path}: what `{stage}` has left of {arm.name} is of another recipe, or unfinished; "
            f"run `radistill {stage}` with this one first"
        )


def evaluate_inputs(context: Context) -> dict[str, Any]:
    """Of `evaluate`; names of arms count, because the results have them."""
    return {
        **context.settings_of("evaluate", "seed"),
        "arms": {
            arm.name: (finetune_inputs if arm.finetune else distill_inputs)(context, arm) for arm in context.hybrids
        },
        "heldout": hash_file(split_file(context, "heldout")),
    }


def distilled_of(context: Context, arm: Arm) -> Path:
    """The distilled model: the trained one, where no fine-tuning follows."""
    files = context.files(arm)
    return files.student if arm.finetune is None else files.distilled


def _own_settings(section: AlignStage | DistillStage | FinetuneStage | None) -> dict[str, Any] | None:
    """A section's settings without its data, whose text counts by its hash."""
    return section.model_dump(mode="json", exclude={"data"}) if section is not None else None
