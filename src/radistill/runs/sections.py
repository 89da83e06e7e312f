"""The sections of a recipe. Every field has a type, a default where one makes sense, and a sentence."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    model_validator,
)

from radistill.conversion.targets import TargetSettings, validate_target
from radistill.data.settings import DataSettings
from radistill.diagnosis.objectives import OBJECTIVES, ObjectiveChoice, check_objective
from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors import EQUAL_PASSES, Curve, Greedy, SelectorSettings
from radistill.diagnosis.trials import MEMORY_GIB
from radistill.distillation.align import AlignSettings
from radistill.distillation.settings import DistillSettings, FinetuneSettings, NextTokenSettings
from radistill.effects import NOT_COUNTED
from radistill.mixers import initialisation_names
from radistill.models.server.settings import ServerSettings


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

STAGES_THAT_READ = ("align", "connect", "distill", "finetune")
"""Stages that may have documents of their own."""

_OWN_DATA = (
    "what it reads instead of the recipe's `data`, with held-out examples of its own to measure on (calibration "
    "examples are not used); null is the recipe's"
)


class Keep(BaseModel, extra="forbid"):
    """A promise: the worse end of the 95 % intervals of KL and recall holds the limit, on held-out texts."""

    kl: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="KL to the model at most, in nats")
    recall: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="numbers found in the texts of `data.retrieval`, at least this share of those that the model finds",
    )
    tasks: dict[str, Annotated[float, Field(gt=-1, le=0)]] = Field(
        default={},
        description="by names in `evaluate.tasks`, how much the share of right answers may fall, such as "
        "`{gsm8k: -0.01}`: of the trained hybrid, and by its estimate alone",
    )

    @model_validator(mode="after")
    def _something(self) -> "Keep":
        if self.kl is None and self.recall is None and not self.tasks:
            raise ValueError("promises nothing: give kl, recall or tasks")
        return self


class DiagnoseSettings(BaseModel, extra="forbid"):
    """Which attention layers go."""

    budget: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        description="attention layers to replace, or layers to cut; with a `penalty`, at most; `auto` is the most that "
        "`keep` allows; 0, with the target `cut` and a `teacher`, makes a drafter of the model as it is"
    )
    keep: Keep | None = Field(default=None, description="what `budget: auto` promises")
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
    objective: Annotated[ObjectiveChoice, AfterValidator(check_objective)] = Field(
        default="kl",
        description=f"what the search maximises: one of {', '.join(OBJECTIVES)}, or weights of several, such as "
        "`{kl: 1, retrieval: 0.1}`",
    )
    passes: float | None = Field(
        default=None,
        gt=0,
        description="what a search may spend, in passes of the whole model over the calibration data; "
        f"null lets it end by itself, and gives each selector of `all` {EQUAL_PASSES}",
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="the same in time: as many passes as the whole model would make by then, by the time of its first "
        "one here, and enough to judge each layer alone; a plan that this has cut short is another one elsewhere",
    )
    tradeoff: Annotated[bool, NOT_COUNTED] = Field(
        default=False, description="whether a run draws the trade-off, as `budget: auto` does in any case"
    )
    context_length: int = Field(
        default=1024, ge=1, description="tokens in the cache where `throughput-modelled` times the components"
    )
    draft_length: int = Field(
        default=4, ge=1, description="tokens drafted in a round where `throughput-measured` decodes"
    )
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")
    memory_gib: Annotated[float, NOT_COUNTED] = Field(
        default=MEMORY_GIB,
        gt=0,
        allow_inf_nan=False,
        description="room for what a search remembers of the full model; what does not fit is computed again for each "
        "judged set, with the same plan",
    )

    @model_validator(mode="after")
    def _of_auto(self) -> "DiagnoseSettings":
        if self.budget != "auto":
            if self.keep is not None:
                raise ValueError("keep is for budget: auto")
            return self
        if self.keep is None:
            raise ValueError("budget is auto, which needs keep, such as `keep: {kl: 0.05}`")
        if self.penalty is not None:
            raise ValueError("budget is auto, and penalty chooses the number of layers, too; leave one of the two out")
        if "selector" not in self.model_fields_set:
            self.selector = Curve()
        elif not isinstance(self.selector, Curve):
            raise ValueError(f"budget is auto, which is found by the selector curve, not {self.selector.kind}")
        return self

    @property
    def draws_tradeoff(self) -> bool:
        """Whether every size is searched and measured: because it was asked for, or to find the budget."""
        return self.tradeoff or self.keep is not None

    @property
    def sizes(self) -> range:
        """How many layers may be chosen; where that is found out, one size stands for all."""
        budget = 1 if self.budget == "auto" else self.budget
        return range(budget if self.penalty is None else 1, budget + 1)


class ConvertSettings(BaseModel, extra="forbid", validate_default=True):
    """What the replaced layers become."""

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


class ConnectStage(NextTokenSettings):
    """How the connector of a drafter that sees learns captions, before all else and alone (phase 1 of MASSV)."""

    section: ClassVar[str] = "connect"

    steps: int = Field(default=200, ge=1, description="optimiser steps")
    new_block_learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's peak rate for the connector")
    data: OwnData = Field(default=None, description=_OWN_DATA)


class DistillStage(DistillSettings):
    """How the student is trained on the teacher's distributions."""

    data: OwnData = Field(default=None, description=_OWN_DATA)


class FinetuneStage(FinetuneSettings):
    """How the whole student is trained on response tokens, without a teacher."""

    data: OwnData = Field(default=None, description=_OWN_DATA)


class EvaluateSettings(BaseModel, extra="forbid"):
    """How the hybrids are measured against the model that they came from."""

    exact_match: bool = Field(default=True, description="generate answers and check them, where data has a verifier")
    max_new_tokens: int = Field(default=256, ge=1, description="longest answer; an unfinished one counts as wrong")
    batch_size: int = Field(default=16, ge=1, description="answers generated at once")
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")
    tasks: list[str] = Field(
        default=[],
        description="asked of base and main hybrid, as by `radistill evaluate --tasks`; data come from the hub",
    )
    limit: int | None = Field(
        default=None, ge=1, description="examples of each task; of recall, for each length; null is the task's number"
    )
    contexts: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="tokens of recall's texts; null is its own lengths"
    )
    server: ServerSettings | None = Field(
        default=None,
        description="who writes the answers to the tasks: `vllm`, those of base and hybrid; or an address, where a "
        "server of the base writes those of the base alone. Tasks that read a text have none; null is none",
    )
    samples: int = Field(default=3, ge=0, description="answers shown side by side in the report")
