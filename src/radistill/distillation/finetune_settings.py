"""What a recipe says about next-token fine-tuning."""

from typing import ClassVar, Literal

from pydantic import Field

from radistill.distillation.distill_settings import TrainingSettings
from radistill.distillation.losses import TokenLoss, cross_entropy
from radistill.distillation.stopping import Measure


class FinetuneSettings(TrainingSettings):
    """How the whole student is trained on response tokens, without a teacher."""

    section: ClassVar[str] = "finetune"
    taught: ClassVar[bool] = False
    measure: ClassVar[Measure] = "cross_entropy"
    hidden: ClassVar[None] = None
    on_policy: ClassVar[None] = None
    teacher_store: ClassVar[None] = None
    contradiction: ClassVar[None] = None

    steps: int = Field(default=100, ge=1, description="optimiser steps")
    new_block_learning_rate: float = Field(
        default=1e-5, ge=0, allow_inf_nan=False, description="AdamW's peak rate for the new blocks; 0 freezes them"
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
