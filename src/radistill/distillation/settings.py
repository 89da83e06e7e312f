"""What a recipe says about end-to-end training: distillation and fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from radistill.distillation.losses.chunked import TokenLoss
from radistill.distillation.losses.distributions import ForwardKL, LossSettings, cross_entropy, cross_entropy_mix
from radistill.distillation.losses.hidden import HiddenSettings
from radistill.distillation.losses.top_k import over_categories
from radistill.distillation.modes import Precision
from radistill.distillation.rates import RateSearch
from radistill.distillation.selection import TokenSelection
from radistill.distillation.stopping import Measure
from radistill.distillation.teacher_store.settings import TeacherStoreSettings
from radistill.distillation.tracking import Tracker
from radistill.effects import NOT_COUNTED
from radistill.errors import RadistillError

OtherRate = Annotated[float, Field(ge=0, description="peak rate for every other weight; 0 freezes them")]


class OnPolicySettings(BaseModel, extra="forbid", allow_inf_nan=False):
    """How often the student's own responses take the place of the documents', and how it writes them."""

    share: float = Field(
        default=0.5, ge=0, le=1, description="probability, at the first step, that a batch is one of its own responses"
    )
    final_share: float | None = Field(
        default=None, ge=0, le=1, description="the same at the last step, linear in between; null is `share`"
    )
    max_new_tokens: int = Field(
        default=128, ge=1, description="longest response; batches are formed so that it fits into `tokens_per_batch`"
    )
    temperature: float = Field(
        default=1.0, ge=0, description="1 samples from the student as it is; 0 takes the likeliest token each time"
    )

    @model_validator(mode="after")
    def _some_share(self) -> "OnPolicySettings":
        if not self.share and not self.final_share:
            raise ValueError("share is 0 throughout; raise share or final_share, or set the section to null")
        return self

    @property
    def always(self) -> bool:
        """Whether no batch of documents is left."""
        return self.share == 1 and self.final_share in (None, 1)

    def share_at(self, step: int, steps: int) -> float:
        """The share at a step, from 1 to `steps`."""
        last = self.share if self.final_share is None else self.final_share
        return self.share + (last - self.share) * (step - 1) / max(1, steps - 1)


class TrainingSettings(BaseModel, extra="forbid", allow_inf_nan=False):
    """How the whole student is trained, whatever on.

    Attributes:
        section: name of the stage, and of its section in a recipe.
        taught: whether the loss looks at the teacher.
        measure: the held-out measure by which the best weights are told and patience runs out.
    """

    section: ClassVar[str]
    taught: ClassVar[bool]
    measure: ClassVar[Measure]

    steps: int = Field(default=200, ge=1, description="optimiser steps")
    tokens_per_batch: int = Field(
        default=2048, ge=1, description="padded tokens in one forward; a longer document gets a batch of its own"
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        description="batches in one optimiser step, of all processes together; every response token in them weighs the "
        "same",
    )
    new_block_learning_rate: float = Field(default=3e-5, gt=0, description="AdamW's peak rate for the new blocks")
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="share of the steps in which the rates rise")
    scheduler: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = Field(
        default="cosine", description="transformers' schedule of the rates after the warm-up"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decay of matrices; vectors never decay")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are clipped to this norm, all weights together"
    )
    precision: Precision | None = Field(
        default=None,
        description="number format to compute in, with trained weights in float32; null is that of the weights; "
        "`weights` computes and trains in theirs, where updates that are small beside a weight round away",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="keep only the inputs of layers for the backward, and compute each layer again there"
    )
    compile: bool = Field(
        default=False, description="run the layers of student and teacher through torch.compile, all but SSM blocks"
    )
    eval_steps: int = Field(
        default=50, ge=1, description="steps between held-out measures; the first and the last step always have one"
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="which weights come out: those of the lowest held-out KL after step 0, or of the last step",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="training ends when so many held-out measures in a row bring no lower KL; null takes all steps",
    )
    divergence: float | None = Field(
        default=5.0,
        gt=1,
        description="a run stops when the mean loss of ten steps is so many times the lowest such mean; null lets it "
        "go on",
    )
    save_seconds: Annotated[float, NOT_COUNTED] = Field(
        default=60.0,
        ge=0,
        description="seconds between checkpoints, so the work that a kill can cost; 0 saves each step",
    )
    report_to: Annotated[Tracker, NOT_COUNTED] = Field(
        default="auto",
        description="where the curve goes besides the run folder; auto is TensorBoard where it is installed",
    )
    teacher_device: Annotated[str | None, NOT_COUNTED] = Field(
        default=None, description="device of the teacher, such as cuda:1, while it teaches; null is that of the student"
    )

    def rate(self, new: bool) -> float:
        """Peak rate of the weights of new blocks, or of all others: 0, so frozen, where there is no field for them."""
        return self.new_block_learning_rate if new else 0.0

    def trains(self, new: bool) -> bool:
        """Whether the weights of new blocks, or all others, are trained."""
        return self.rate(new) > 0

    def check_processes(self, count: int, sharded: bool = False) -> None:
        """Refuse what `count` processes cannot do; `sharded` if the student is split among them (FSDP2).

        Raises:
            RadistillError: if `gradient_accumulation` is no multiple of `count`, or split layers are to be compiled, or
                a split student to be compared or to write.
        """
        if self.gradient_accumulation % count:
            raise RadistillError(
                f"{self.section}.gradient_accumulation is {self.gradient_accumulation}, which {count} processes cannot "
                f"share evenly; set it to a multiple of {count}"
            )
        if sharded and self.compile:
            raise RadistillError(
                f"{self.section}.compile is true, which has not been made to work with FSDP2; set it to false"
            )
        for field, needs in _NEED_ALL.items() if sharded else ():
            if getattr(self, field) is not None:
                raise RadistillError(
                    f"{self.section}.{field} {needs} in every process, and FSDP2 splits it; launch without --use_fsdp, "
                    "or set it to null"
                )


_NEED_ALL = {"select": "compares the whole output of the student", "on_policy": "needs the whole student"}
"""Sections that a student which is split among processes cannot have, and why."""


class DistillSettings(TrainingSettings):
    """How the whole student is trained on the teacher's logits."""

    section: ClassVar[str] = "distill"
    taught: ClassVar[bool] = True
    measure: ClassVar[Measure] = "kl"

    other_learning_rate: OtherRate = 0.0
    loss: LossSettings = Field(default_factory=ForwardKL, description="the loss, picked by its kind")
    cross_entropy: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of cross-entropy to the response tokens themselves; the rest is the loss to the teacher, "
        "as is all of it on responses that the student wrote",
    )
    hidden: HiddenSettings | None = Field(
        default=None,
        description="a loss between the final hidden states besides, for a teacher of the student's width; "
        "null adds none",
    )
    on_policy: OnPolicySettings | None = Field(
        default=None,
        description="batches of responses that the student writes itself, as it is then; null trains on documents only",
    )
    select: TokenSelection | None = Field(
        default=None,
        description="train only on the tokens at which a reference shows that there is something to gain; null trains "
        "on all",
    )
    teacher_store: TeacherStoreSettings | None = Field(
        default=None,
        description="write the teacher's largest probabilities down first, and train without it; null keeps it beside "
        "the student",
    )
    rate_search: RateSearch | None = Field(
        default=None,
        description="a choice of `new_block_learning_rate` by short trainings, which a run makes before the training; "
        "null trains at that field's rate, as the library's `distill` does anyway",
    )

    @property
    def contradiction(self) -> str | None:
        """What two settings that are each right say against one another, if they do."""
        if self.cross_entropy and self.on_policy is not None and self.on_policy.always:
            return (
                "distill.cross_entropy counts on documents only, and with distill.on_policy.share 1 there are none; "
                "set it to 0"
            )
        if self.teacher_store is None:
            return None
        needs = {
            "on_policy": "the teacher itself, to read what the student writes, and with distill.teacher_store it is "
            "gone by then",
            "hidden": "the teacher's hidden states, which distill.teacher_store does not keep",
        }
        for field, needed in needs.items():
            if getattr(self, field) is not None:
                return f"distill.{field} needs {needed}; set one of them to null"
        if self.loss.temperature != 1:
            return (
                f"distill.loss.temperature is {self.loss.temperature:g}, but distill.teacher_store keeps a sum of "
                "probabilities, which is known at temperature 1 only; set it to 1, or teacher_store to null"
            )
        return None

    def rate(self, new: bool) -> float:
        """See `TrainingSettings`."""
        return self.new_block_learning_rate if new else self.other_learning_rate

    def token_loss(self, own: bool) -> TokenLoss:
        """The loss of a token, without that of hidden states; `own` if the student wrote the response."""
        loss = self.loss if self.teacher_store is None else over_categories(self.loss)
        # Its own samples as targets would only make it surer of itself.
        return cross_entropy_mix(loss, 0.0 if own else self.cross_entropy)


class NextTokenSettings(TrainingSettings):
    """How new parameters are trained on response tokens, without a teacher, while every other weight stays."""

    taught: ClassVar[bool] = False
    measure: ClassVar[Measure] = "cross_entropy"
    hidden: ClassVar[None] = None
    on_policy: ClassVar[None] = None
    select: ClassVar[None] = None
    teacher_store: ClassVar[None] = None
    contradiction: ClassVar[None] = None

    steps: int = Field(default=100, ge=1, description="optimiser steps")
    new_block_learning_rate: float = Field(
        default=1e-5, ge=0, description="AdamW's peak rate for the new blocks; 0 freezes them"
    )
    keep: Literal["best", "last"] = Field(
        default="last",
        description="which weights come out: those of the lowest held-out cross-entropy after step 0, or of the last "
        "step",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="training ends when so many held-out measures in a row bring no lower cross-entropy; null takes "
        "all steps",
    )

    def token_loss(self, own: bool) -> TokenLoss:
        """The loss of a token; `own` changes nothing, as the student writes no batches here."""
        return cross_entropy


class FinetuneSettings(NextTokenSettings):
    """How the whole student is trained on response tokens, without a teacher."""

    section: ClassVar[str] = "finetune"

    other_learning_rate: OtherRate = 0.0

    def rate(self, new: bool) -> float:
        """See `TrainingSettings`."""
        return self.new_block_learning_rate if new else self.other_learning_rate
