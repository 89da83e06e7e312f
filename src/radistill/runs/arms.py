"""The hybrids of a run: the main one, and the arms that it is compared with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from radistill.conversion.targets import TargetSettings, find_initialisation
from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors import SelectorSettings
from radistill.distillation.rates import Rates, RateSearch
from radistill.errors import RadistillError
from radistill.models.sources import as_path
from radistill.runs.folder import MAIN
from radistill.runs.recipe_errors import explain
from radistill.runs.sections import (
    AlignStage,
    ConnectStage,
    DistillStage,
    FinetuneStage,
    Initialisation,
    Selector,
    Target,
)

Stage = TypeVar("Stage", AlignStage, DistillStage, FinetuneStage)
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_DIFFERENT = "the fields that differ, by their names; null leaves it out"


class ArmSettings(BaseModel, extra="forbid"):
    """A hybrid to compare the main one with. What is left out is as in the main one; the documents always are."""

    selector: Selector | None = Field(default=None, description="how its layers are chosen")
    by: By | None = Field(default=None, description="how its layers are judged")
    budget: int | None = Field(default=None, ge=1, description="attention layers to replace")
    target: Target | None = Field(default=None, description="its architecture")
    init: Initialisation | None = Field(default=None, description="how its new blocks start")
    teacher: Annotated[str, AfterValidator(as_path)] | None = Field(
        default=None, min_length=1, description="who teaches it; the recipe's `model` is self-distillation"
    )
    align: dict[str, Any] | None = Field(default={}, description=f"the fit of its blocks: {_DIFFERENT}")
    distill: dict[str, Any] | None = Field(default={}, description=f"its end-to-end training: {_DIFFERENT}")
    finetune: dict[str, Any] | None = Field(default={}, description=f"its fine-tuning: {_DIFFERENT}")
    rate: Rate | Rates | None = Field(
        default=None,
        description="learning rate of its new blocks in `distill`, or rates to choose from as `rate_search` does. Left "
        "out, it is the main one's; but where its start is another and no blocks are fitted, what that start wants: "
        "1e-2 for `transfer`, 1e-3 for `random`",
    )


@dataclass(frozen=True)
class Arm:
    """One hybrid of a run, from its plan to its weights.

    Attributes:
        name: its key in evaluation.json.
        by: whether its layers are judged by redundancy or by replaceability.
        selector: how they are chosen.
        budget: how many there are; None is as many as the main hybrid has.
        penalty: what a kept layer costs, where the search decides how many there are; None fixes their number.
        target: the architecture it becomes.
        init: how its new blocks start.
        teacher: source of its teacher; None is self-distillation.
        align: how its blocks are fitted, or None.
        distill: how it is distilled end to end, or None.
        finetune: how it is fine-tuned after that, or None.
        connect: how its connector is trained first, where it is a drafter that sees, or None.
    """

    name: str
    by: By
    selector: SelectorSettings
    budget: int | None
    penalty: float | None
    target: TargetSettings
    init: str
    teacher: str | None
    align: AlignStage | None
    distill: DistillStage | None
    finetune: FinetuneStage | None
    connect: ConnectStage | None = None

    @property
    def is_main(self) -> bool:
        """Whether it is the hybrid that the run is about."""
        return self.name == MAIN

    @property
    def trainings(self) -> list[ConnectStage | DistillStage | FinetuneStage]:
        """Its stages of end-to-end training, in order."""
        stages = (self.connect, self.distill, self.finetune)
        return [training for training in stages if training is not None]

    @property
    def sees(self) -> bool:
        """Whether it is a drafter that reads its teacher's images."""
        return self.target.kind == "massv"

    def field(self, section: str, name: str = "") -> str:
        """Where a recipe says something of this hybrid: `diagnose.by` of the main one, `arms.NAME.by` of an arm."""
        if not self.is_main:
            return ".".join(filter(None, ["arms", self.name, name if section in ("diagnose", "convert") else section]))
        return ".".join(filter(None, [section, name]))


def arm_of(main: Arm, name: str, settings: ArmSettings, model: str) -> Arm:
    """The arm that `settings` describe beside the main hybrid of `model`.

    Raises:
        RadistillError: naming a field of a stage that does not exist or is not allowed.
    """
    where = f"arms.{name}"
    init = settings.init or main.init
    align = _merged(AlignStage, main.align, settings.align, f"{where}.align")
    distill = _merged(DistillStage, main.distill, settings.distill, f"{where}.distill")
    target, rate = settings.target or main.target, settings.rate
    own = [field for field in ("new_block_learning_rate", "rate_search") if field in (settings.distill or {})]
    if rate is not None and (own or distill is None):
        other = f"{where}.distill.{own[0]} says it too" if own else "it is not distilled"
        raise RadistillError(f"{where}.rate: {other}; leave one of the two out")
    if rate is None and not own and align is None and (align, init, target) != (main.align, main.init, main.target):
        # So far from the teacher, the rate of a hybrid's fitted blocks would leave a start where it is.
        rate = find_initialisation(init, target).rate
    if distill is not None and isinstance(rate, list):
        search = distill.rate_search.model_dump() if distill.rate_search else {}
        rates = RateSearch.model_validate(search | {"rates": rate})
        distill = distill.model_copy(update={"rate_search": rates})
    elif distill is not None and rate is not None:
        distill = distill.model_copy(update={"new_block_learning_rate": rate, "rate_search": None})
    return replace(
        main,
        name=name,
        by=settings.by or main.by,
        selector=settings.selector or main.selector,
        # Where the search decides how many layers go, a comparison is between hybrids of one size.
        budget=settings.budget or (main.budget if main.penalty is None else None),
        penalty=None,
        target=target,
        init=init,
        teacher=(None if settings.teacher == model else settings.teacher) if settings.teacher else main.teacher,
        align=align,
        distill=distill,
        finetune=_merged(FinetuneStage, main.finetune, settings.finetune, f"{where}.finetune"),
    )


def _merged(kind: type[Stage], main: Stage | None, given: Mapping[str, Any] | None, where: str) -> Stage | None:
    """The main hybrid's section with the fields that an arm gives; None where the arm leaves it out."""
    if given is None or (main is None and not given):
        return None
    if "data" in given:
        raise RadistillError(f"{where}.data: all hybrids read the same documents; leave it out")
    before = main.model_dump(mode="json") if main is not None else {}
    try:
        return kind.model_validate_json(json.dumps({**before, **given}), strict=True)
    except ValidationError as error:
        raise RadistillError(f"{where}.{explain(error, kind)}") from None
