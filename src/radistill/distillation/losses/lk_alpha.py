"""LK loss on acceptance itself: minus the log of how often a draft is accepted (arXiv 2602.23881)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import log_probabilities


def lk_alpha(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T * log sum_v min(p_v, q_v) of each token, where p is softmax(teacher / T) and q is softmax(student / T).

    At T = 1 the sum is the probability that the teacher accepts a token that the student drafts. Total variation is one
    minus that sum; the logarithm makes the gradient larger by one over it, so that the tokens at which little is
    accepted do not go unheard. Everything is computed from logarithms: where next to nothing is shared, the loss is
    large and its gradient finite.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab].
        temperature: T, above 0; T keeps the size of the gradient, as for total variation.

    Returns:
        [tokens], float32 (float64 for float64 logits); exactly 0 with zero gradient where the logits are equal, and
        infinite only where each of both rules out all that the other does not.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    shared = torch.minimum(teacher, student).logsumexp(dim=-1)
    # What probabilities add up to is 1 but for rounding, which is the same on both sides where these are equal.
    return temperature * (teacher.logsumexp(dim=-1) - shared)


class LKAlpha(DistributionLoss):
    """Minus the logarithm of how often the teacher would accept the student's token."""

    function: ClassVar = lk_alpha
    kind: Literal["lk-alpha"] = "lk-alpha"
