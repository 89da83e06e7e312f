"""The sections of a recipe. Every field has a type, a default where one makes sense, and a sentence."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from radistill.conversion.targets import TargetSettings, validate_target
from radistill.data.settings import DataSettings
from radistill.diagnosis.objectives import OBJECTIVES
from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors import Greedy, SelectorSettings
from radistill.diagnosis.selectors.all import EQUAL_PASSES
from radistill.distillation.align import AlignSettings
from radistill.distillation.settings import DistillSettings, FinetuneSettings
from radistill.effects import NOT_COUNTED
from radistill.mixers import initialisation_names


def kind_of(value: Any) -> Any:
    """`selector: bayes` is short for `selector: {kind: bayes}`."""
    return {"kind": value} if isinstance(value, str) else value


def _one_of(known: Callable[[], Iterable[str]]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in list(known()):
            raise ValueError(f"must be one of {', '.join(sorted(known()))}")
        return value

    return BeforeValidator(check)


Selector = Annotated[SelectorSettings, BeforeValidator(kind_of)]
Target = Annotated[SerializeAsAny[TargetSettings], BeforeValidator(validate_target)]
Initialisation = Annotated[str, _one_of(initialisation_names)]
# What comes of these settings counts: the text that a stage reads, by its hash.
OwnData = Annotated[DataSettings | None, NOT_COUNTED]

_OWN_DATA = (
    "what it reads instead of the recipe's `data`, with held-out examples of its own to measure on (calibration "
    "examples are not used); null is the recipe's"
)


class DiagnoseSettings(BaseModel):
    """Which attention layers go."""

    model_config = ConfigDict(extra="forbid")

    budget: int = Field(ge=1, description="attention layers to replace; with a `penalty`, at most")
    penalty: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="what an attention layer that stays costs, in the objective's unit; null fixes their number",
    )
    by: By = Field(
        default="replaceability",
        description="`replaceability` judges drafts with a fitted block in place of attention, which `align` fits for "
        "every layer first; `redundancy` drafts that skip it, which is RAD as published and fits nothing first",
    )
    selector: Selector = Field(default_factory=Greedy, description="how they are chosen")
    objective: Annotated[str, _one_of(lambda: OBJECTIVES)] = Field(
        default="kl", description="what the search maximises"
    )
    passes: float | None = Field(
        default=None,
        gt=0,
        description="what a search may spend, in passes of the whole model over the calibration data; "
        f"null lets it end by itself, and gives each selector of `all` {EQUAL_PASSES}",
    )
    context_length: int = Field(
        default=1024, ge=1, description="tokens in the cache where `throughput-modelled` times the components"
    )
    draft_length: int = Field(
        default=4, ge=1, description="tokens drafted in a round where `throughput-measured` decodes"
    )
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")

    @property
    def sizes(self) -> range:
        """How many layers may be chosen."""
        return range(self.budget if self.penalty is None else 1, self.budget + 1)


class ConvertSettings(BaseModel):
    """What the replaced layers become."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    target: Target | None = Field(
        default=None, description="the student's architecture; null is the first that can hold the model"
    )
    init: Initialisation = Field(default="fitted", description="how the new blocks start")


class AlignStage(AlignSettings):
    """How the new blocks are fitted before any end-to-end training."""

    data: OwnData = Field(
        default=None,
        description="what it reads instead of the recipe's `data`; only the training examples are used, a part of them "
        "to measure the fit; null is the recipe's",
    )


class DistillStage(DistillSettings):
    """How the student is trained on the teacher's distributions."""

    data: OwnData = Field(default=None, description=_OWN_DATA)


class FinetuneStage(FinetuneSettings):
    """How the whole student is trained on response tokens, without a teacher."""

    data: OwnData = Field(default=None, description=_OWN_DATA)
