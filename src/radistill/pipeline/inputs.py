"""What each step of a run depends on, and what it leaves: while both are as they were, it is not done again."""

from pathlib import Path
from typing import Any, Literal

from radistill.conversion import TARGETS, new_parameters
from radistill.data.records import RETRIEVAL, SPLITS
from radistill.data.settings import DataSettings
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.selectors import Curve
from radistill.effects import counted
from radistill.errors import RadistillError
from radistill.files import hash_file, read_json
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.pipeline.context import Context
from radistill.runs.arms import Arm
from radistill.runs.contents import Promise, TradeOff
from radistill.runs.recipe import Recipe

Stage = Literal["diagnose", "convert", "distill", "finetune"]

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
    return {
        # Data that lies on this machine may change under the same name.
        "data": [_content(Path(place)) for place in data if place],
        **_data_settings(context, settings),
    }


def _data_settings(context: Context, settings: DataSettings) -> dict[str, Any]:
    recipe = context.recipe
    models = [context.signature(source) for source in (recipe.model, recipe.teacher) if source]
    return {"models": models, "settings": counted(settings), **context.settings_of("dtype", "seed")}


def _content(place: Path) -> str | dict[str, str] | None:
    """Of a file, or of all files in a folder; None where there is neither, as for a name on the hub."""
    if place.is_dir():
        return {str(file.relative_to(place)): hash_file(file) for file in sorted(place.rglob("*")) if file.is_file()}
    return hash_file(place) if place.is_file() else None


def plan_of(context: Context, arm: Arm) -> Plan:
    """The plan that the diagnosis has left of a hybrid, or that someone has written.

    Raises:
        RadistillError: if there is none, or a damaged one.
    """
    path = context.files(arm).plan
    if not path.exists():
        raise RadistillError(f"{path}: no such file; run `radistill diagnose` first")
    try:
        return Plan.load(path)
    except RadistillError as error:
        raise RadistillError(f"{error}; correct it, or remove it and run `radistill diagnose`") from None


def budget_of(context: Context, arm: Arm) -> int:
    """How many layers are to go. Where the search chooses how many, an arm has as many as the main hybrid.

    Raises:
        RadistillError: if that depends on a plan or a trade-off that is not there, or no budget keeps the promise.
    """
    if arm.budget is not None:
        return arm.budget
    if not arm.is_main:
        return len(plan_of(context, context.hybrids[0]).replace)
    if context.recipe.diagnose.keep is not None and context.recipe.diagnose.keep.tasks:
        found = read_json(context.folder.promise, Promise)
        if found.budget is None:
            raise _kept_by_none(context.folder.promise, "train the hybrids for longer")
        return found.budget
    return most_layers(context)


def most_layers(context: Context) -> int:
    """The most layers that keep KL and recall, by the trade-off.

    Raises:
        RadistillError: if not even one layer does.
    """
    found = read_json(context.folder.tradeoff, TradeOff)
    if found.budget is not None:
        return found.budget
    base, recall = found.points[0], promised(context.recipe).get("recall", 0)
    if recall > (base.recall_interval or (0.0,))[0]:
        raise RadistillError(
            f"{context.folder.tradeoff}: diagnose.keep.recall is {recall:g}, which cannot be shown: the model itself "
            f"finds {base.of or 0} of {found.retrieval_texts} numbers; raise data.retrieval.heldout, or shorten its "
            "contexts"
        )
    raise _kept_by_none(context.folder.tradeoff, "fit the blocks on more text (data.train, align.steps)")


def _kept_by_none(path: Path, way_out: str) -> RadistillError:
    return RadistillError(
        f"{path}: no budget keeps what diagnose.keep promises; choose a limit that these figures show to be possible, "
        f"or {way_out}"
    )


def diagnose_inputs(context: Context, arm: Arm, with_budget: bool = True) -> dict[str, Any]:
    """Of `diagnose`: two hybrids with the same have the same plan."""
    settings = context.recipe.diagnose
    goes = TARGETS[arm.target.kind].goes
    unread = [field for field, objective in _OF_ONE_OBJECTIVE.items() if objective != settings.objective]
    return {
        "model": context.signature(context.recipe.model),
        "selector": counted(arm.selector),
        "calibration": hash_file(split_file(context, "calibration")),
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
        "heldout": hash_file(split_file(context, "heldout")),
        **_retrieval_inputs(context, "heldout"),
        "target": counted(context.recipe.target),
        "keep": promised(context.recipe),
    }


def promised(recipe: Recipe) -> dict[str, float]:
    """The limits of `diagnose.keep` that the trade-off decides on."""
    keep = recipe.diagnose.keep
    return {} if keep is None else keep.model_dump(exclude_none=True, exclude={"tasks"})


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
        "train": {stage: hash_file(split_file(context, "train", stage)) for stage in stages},
        "heldout": {stage: hash_file(split_file(context, "heldout", stage)) for stage in stages},
        "teacher": context.signature(main.teacher) if main.teacher else None,
        "target": counted(main.target),
        "init": main.init,
    }


def _retrieval_inputs(context: Context, split: str) -> dict[str, str]:
    if context.recipe.data.retrieval is None:
        return {}
    return {"retrieval": hash_file(split_file(context, f"{split}_retrieval"))}


def _blocks_inputs(context: Context, arm: Arm) -> dict[str, Any]:
    return {
        "train": hash_file(split_file(context, "train", "align")),
        "align": counted(arm.align) if arm.align else None,
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
        "teacher": context.signature(arm.teacher) if arm.teacher else None,
        "align_train": hash_file(split_file(context, "train", "align")) if arm.align else None,
        "train": hash_file(split_file(context, "train", "distill")),
        "heldout": hash_file(split_file(context, "heldout", "distill")),
        "align": counted(arm.align) if arm.align else None,
        "distill": counted(arm.distill) if arm.distill else None,
        **(
            {"reference": context.signature(arm.distill.select.reference)} if arm.distill and arm.distill.select else {}
        ),
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
        "finetune": counted(arm.finetune) if arm.finetune else None,
        "train": hash_file(split_file(context, "train", "finetune")),
        "heldout": hash_file(split_file(context, "heldout", "finetune")),
    }


def outputs_of(context: Context, arm: Arm, stage: Stage) -> list[Path]:
    """What a stage leaves of a hybrid."""
    files = context.files(arm)
    if stage == "diagnose":
        return [files.plan]
    if stage == "convert":
        return [files.start]
    if stage == "finetune":
        return [files.student, files.finetune]
    return [
        distilled_of(context, arm),
        *([files.align] if arm.align else []),
        *([files.distill] if arm.distill else []),
    ]


def check_made(context: Context, arm: Arm, stage: Stage, inputs: Any) -> None:
    """Refuse to go on from what `stage` has left of a hybrid, if it is damaged or of other inputs than the recipe's.

    Raises:
        RadistillError: naming the stage that has to be run.
    """
    fine_tuned = stage == "distill" and arm.finetune is None and context.files(arm).distilled.exists()
    if fine_tuned or not context.folder.is_current(f"{stage}:{arm.name}", inputs, outputs_of(context, arm, stage)):
        raise RadistillError(
            f"{context.folder.path}: what `{stage}` has left of {arm.name} is of another recipe, damaged or "
            f"unfinished; run `radistill {stage}` with this one first"
        )


def evaluate_inputs(context: Context) -> dict[str, Any]:
    """Of `evaluate`; names of arms count, because the results have them."""
    return {
        "evaluate": counted(context.recipe.evaluate),
        "arms": {
            arm.name: (finetune_inputs if arm.finetune else distill_inputs)(context, arm) for arm in context.hybrids
        },
        "heldout": hash_file(split_file(context, "heldout")),
    }


def new_parameters_of(context: Context, arm: Arm, student: Model) -> set[str]:
    """Names of the parameters of a hybrid that belong to new blocks."""
    return new_parameters(student, TARGETS[arm.target.kind].new_blocks(plan_of(context, arm).replace))


def distilled_of(context: Context, arm: Arm) -> Path:
    """The distilled model: the trained one, where no fine-tuning follows."""
    files = context.files(arm)
    return files.student if arm.finetune is None else files.distilled
