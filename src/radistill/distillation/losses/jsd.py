"""Generalised Jensen-Shannon divergence: between forward and reverse KL (GKD, arXiv 2306.13649)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import kl_of_logs, log_probabilities, skewed_kl_of_logs


def generalised_jsd(
    teacher_logits: Tensor, student_logits: Tensor, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """T^2 * (beta * KL(p || m) + (1 - beta) * KL(q || m)) of each token, in nats.

    p is softmax(teacher / T), q is softmax(student / T), and m = beta * p + (1 - beta) * q. For 0 < beta < 1 it is at
    most T^2 * log 2. As beta goes to 0 it goes to 0 as beta * KL(p || q) does, and as beta goes to 1, as
    (1 - beta) * KL(q || p) does; so that there is something to learn at the ends too, `beta` 0 stands for the whole
    forward KL and 1 for the whole reverse KL.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab].
        beta: from 0 to 1.
        temperature: T, above 0; T^2 keeps the size of the gradient.

    Returns:
        [tokens], float32 (float64 for float64 logits); exactly 0 where the logits are equal.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    if beta == 0:
        value = kl_of_logs(teacher, student)
    elif beta == 1:
        value = kl_of_logs(student, teacher)
    else:
        of_teacher = skewed_kl_of_logs(teacher, student, beta)
        value = beta * of_teacher + (1 - beta) * skewed_kl_of_logs(student, teacher, 1 - beta)
    return temperature**2 * value


class GeneralisedJSD(DistributionLoss):
    """Jensen-Shannon divergence with a weight: bounded, and between the two KLs."""

    function: ClassVar = generalised_jsd
    kind: Literal["jsd"] = "jsd"
    beta: float = Field(
        default=0.5, ge=0, le=1, description="the teacher's share of the mixture; 0 is the forward KL, 1 the reverse KL"
    )
