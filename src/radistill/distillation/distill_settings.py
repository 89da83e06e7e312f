"""What a recipe says about end-to-end distillation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from radistill.distillation.losses import ForwardKL, HiddenSettings, LossSettings
from radistill.errors import RadistillError


class DistillSettings(BaseModel):
    """How the whole student is trained on the teacher's logits."""

    model_config = ConfigDict(extra="forbid")

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
    new_block_learning_rate: float = Field(
        default=1e-4, gt=0, allow_inf_nan=False, description="AdamW's peak rate for the new blocks"
    )
    other_learning_rate: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="peak rate for every other weight; 0 freezes them"
    )
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="share of the steps in which the rates rise")
    scheduler: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = Field(
        default="cosine", description="transformers' schedule of the rates after the warm-up"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="AdamW's decay of matrices; vectors never decay"
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="gradients are clipped to this norm, all weights together"
    )
    loss: LossSettings = Field(default_factory=ForwardKL, description="the loss, picked by its kind")
    cross_entropy: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of cross-entropy to the response tokens themselves; the rest is the loss to the teacher",
    )
    hidden: HiddenSettings | None = Field(
        default=None,
        description="a loss between the final hidden states besides, for a teacher of the student's width; "
        "null adds none",
    )
    eval_steps: int = Field(
        default=50, ge=1, description="steps between held-out measures; the first and the last step always have one"
    )
    save_seconds: float = Field(
        default=60.0,
        ge=0,
        description="seconds between checkpoints, so the work that a kill can cost; 0 saves each step",
    )
    report_to: Literal["none", "tensorboard"] = Field(
        default="none", description="where the curve goes besides distill.json"
    )

    def check_processes(self, count: int) -> None:
        """Refuse a step that `count` processes cannot share.

        Raises:
            RadistillError: if `gradient_accumulation` is no multiple of `count`.
        """
        if self.gradient_accumulation % count:
            raise RadistillError(
                f"distill.gradient_accumulation is {self.gradient_accumulation}, which {count} processes cannot share "
                f"evenly; set it to a multiple of {count}"
            )
