"""What the stages of a run have left for those that come after them."""

from pathlib import Path
from typing import Any, Literal

from radistill.conversion import TARGETS, new_parameters
from radistill.conversion.seeing import connector_parameters
from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.models.loading import Model
from radistill.pipeline.context import Context
from radistill.runs.arms import Arm
from radistill.runs.contents import Promise, TradeOff
from radistill.runs.recipe import Recipe

Stage = Literal["diagnose", "convert", "distill", "finetune"]


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


def promised(recipe: Recipe) -> dict[str, float]:
    """The limits of `diagnose.keep` that the trade-off decides on."""
    keep = recipe.diagnose.keep
    return {} if keep is None else keep.model_dump(exclude_none=True, exclude={"tasks"})


def outputs_of(context: Context, arm: Arm, stage: Stage) -> list[Path]:
    """What a stage leaves of a hybrid."""
    files = context.files(arm)
    told = [file for file, settings in ((files.align, arm.align), (files.distill, arm.distill)) if settings]
    return {
        "diagnose": [files.plan],
        "convert": [files.start],
        "distill": [distilled_of(context, arm), *told],
        "finetune": [files.student, files.finetune],
    }[stage]


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


def new_parameters_of(context: Context, arm: Arm, student: Model) -> set[str]:
    """Names of the parameters of a hybrid that belong to new blocks; of a drafter that sees, to its connector."""
    if student.reader is not None:
        return set(connector_parameters(student))
    return new_parameters(student, TARGETS[arm.target.kind].new_blocks(plan_of(context, arm).replace))


def distilled_of(context: Context, arm: Arm) -> Path:
    """The distilled model: the trained one, where no fine-tuning follows."""
    files = context.files(arm)
    return files.student if arm.finetune is None else files.distilled
