"""Skewed KL: forward KL to a mixture that has a part of the teacher in it (DistiLLM, arXiv 2402.03898)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import log_probabilities, skewed_kl_of_logs


def skewed_kl(teacher_logits: Tensor, student_logits: Tensor, alpha: float = 0.1, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(p || alpha * p + (1 - alpha) * q) of each token, in nats.

    p is softmax(teacher / T) and q is softmax(student / T). As alpha goes to 0 it goes to the forward KL, but it is at
    most T^2 * log(1 / alpha), and its gradient is bounded where the student all but rules out what the teacher says.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab].
        alpha: above 0 and below 1.
        temperature: T, above 0; T^2 keeps the size of the gradient.

    Returns:
        [tokens], float32 (float64 for float64 logits); exactly 0 where the logits are equal.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * skewed_kl_of_logs(teacher, student, alpha)


class SkewedKL(DistributionLoss):
    """KL from the teacher to a mixture of teacher and student: a forward KL that stays finite."""

    function: ClassVar = skewed_kl
    kind: Literal["skewed-kl"] = "skewed-kl"
    alpha: float = Field(default=0.1, gt=0, lt=1, description="the teacher's share of the mixture")
