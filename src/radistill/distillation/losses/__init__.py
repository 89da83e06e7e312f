"""Losses between a teacher's logits and a student's: one file each, under its published name.

A loss is a pure function from two [tokens, vocab] tensors to [tokens]; beside it stand its settings, which a recipe
picks by `kind`. A new one is one file, one entry in `LOSSES` and one member of `LossSettings`.
"""

from radistill.distillation.losses.chunked import chunked_sum
from radistill.distillation.losses.kl import ForwardKL, forward_kl

LOSSES: dict[str, type[ForwardKL]] = {"forward-kl": ForwardKL}

# pydantic wants a second member before it takes a discriminator; until then `kind` is checked by its own Literal.
LossSettings = ForwardKL

__all__ = ["LOSSES", "ForwardKL", "LossSettings", "chunked_sum", "forward_kl"]
