"""LK loss that goes from forward KL to total variation as more drafts are accepted (arXiv 2602.23881)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import kl_of_logs, log_probabilities, tv_of_logs


def lk_lambda(teacher_logits: Tensor, student_logits: Tensor, eta: float = 3.0, temperature: float = 1.0) -> Tensor:
    """share * T^2 * KL(p || q) + (1 - share) * T * TV(p, q) of each token.

    p is softmax(teacher / T), q is softmax(student / T), and share = exp(-eta * sum_v min(p_v, q_v)). It follows from
    how often the token is accepted now; no gradient flows through it. A token that is never accepted has the KL, whose
    gradient reaches far; one that nearly always is has mostly the total variation, which is what counts in the end. As
    published the acceptance is a mean over a batch; here each token has its own, so that it can be taken by itself.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab]. A token that it rules out (-inf) and the teacher does not makes the loss
            infinite.
        eta: how fast the KL gives way, at least 0.
        temperature: T, above 0; its powers keep the size of both gradients.

    Returns:
        [tokens], float32 (float64 for float64 logits); exactly 0 with zero gradient where the logits are equal.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    share = torch.exp(-eta * torch.minimum(teacher, student).exp().sum(dim=-1)).detach()
    variation = tv_of_logs(teacher, student)
    return share * temperature**2 * kl_of_logs(teacher, student) + (1 - share) * temperature * variation


class LKLambda(DistributionLoss):
    """Forward KL where little of the student is accepted, total variation where much is."""

    function: ClassVar = lk_lambda
    kind: Literal["lk-lambda"] = "lk-lambda"
    eta: float = Field(
        default=3.0, ge=0, description="the KL's share is exp(-eta x acceptance) of each token; 0 is the KL alone"
    )
