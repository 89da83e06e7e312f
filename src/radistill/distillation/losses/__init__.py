"""Losses between a teacher and a student: one file each, under its published name.

A loss between distributions is a pure function from two [tokens, vocab] tensors of logits to [tokens]; beside it stand
its settings, which a recipe picks by `kind`. A new one is one file and one member of `LossSettings`. The losses between
hidden states, [tokens, hidden], are in `hidden`; the mix with the data's own tokens is in `cross_entropy`; what becomes
of a loss where only a part of the teacher's distribution is known, in `top_k`.
"""

from typing import Annotated

from pydantic import Field

from radistill.distillation.losses.chunked import TokenLoss, chunked_sum
from radistill.distillation.losses.cross_entropy import cross_entropy, cross_entropy_mix
from radistill.distillation.losses.hidden import HiddenSettings, check_same_width, hidden_cosine, hidden_mse
from radistill.distillation.losses.jsd import GeneralisedJSD, generalised_jsd
from radistill.distillation.losses.kl import ForwardKL, forward_kl
from radistill.distillation.losses.reverse_kl import ReverseKL, reverse_kl
from radistill.distillation.losses.skewed_kl import SkewedKL, skewed_kl
from radistill.distillation.losses.top_k import TopK, over_categories, top_k_of
from radistill.distillation.losses.tv import TotalVariation, total_variation

LossSettings = Annotated[
    ForwardKL | ReverseKL | GeneralisedJSD | SkewedKL | TotalVariation, Field(discriminator="kind")
]

__all__ = [
    "ForwardKL",
    "GeneralisedJSD",
    "HiddenSettings",
    "LossSettings",
    "ReverseKL",
    "SkewedKL",
    "TokenLoss",
    "TopK",
    "TotalVariation",
    "check_same_width",
    "chunked_sum",
    "cross_entropy",
    "cross_entropy_mix",
    "forward_kl",
    "generalised_jsd",
    "hidden_cosine",
    "hidden_mse",
    "over_categories",
    "reverse_kl",
    "skewed_kl",
    "top_k_of",
    "total_variation",
]
