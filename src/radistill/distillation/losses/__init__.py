"""Losses between a teacher and a student: one file each, under its published name.

A loss between distributions is a pure function from two [tokens, vocab] tensors of logits to [tokens]; beside it stand
its settings, which a recipe picks by `kind`. A new one is one file and one member of `LossSettings`. The losses between
hidden states, [tokens, hidden], are in `hidden`; the mix with the data's own tokens is in `cross_entropy`; what becomes
of a loss where only a part of the teacher's distribution is known, in `top_k`.
"""

from typing import Annotated

from pydantic import Field

from radistill.distillation.losses.jsd import GeneralisedJSD
from radistill.distillation.losses.kl import ForwardKL
from radistill.distillation.losses.lk_alpha import LKAlpha
from radistill.distillation.losses.lk_lambda import LKLambda
from radistill.distillation.losses.reverse_kl import ReverseKL
from radistill.distillation.losses.skewed_kl import SkewedKL
from radistill.distillation.losses.tv import TotalVariation

LossSettings = Annotated[
    ForwardKL | ReverseKL | GeneralisedJSD | SkewedKL | TotalVariation | LKAlpha | LKLambda,
    Field(discriminator="kind"),
]
