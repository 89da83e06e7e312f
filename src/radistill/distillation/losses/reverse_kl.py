"""Reverse KL: the student says nothing that the teacher would not (MiniLLM, arXiv 2306.08543)."""

from typing import ClassVar, Literal

from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import kl_of_logs, log_probabilities


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(student / T) || softmax(teacher / T)) of each token, in nats.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`. A token that it rules out (-inf) and the student does
            not makes the loss infinite.
        student_logits: [tokens, vocab].
        temperature: T, above 0; T^2 keeps the size of the gradient.

    Returns:
        [tokens], float32 (float64 for float64 logits); exactly 0 where the logits are equal.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * kl_of_logs(student, teacher)


class ReverseKL(DistributionLoss):
    """KL from student to teacher: the student must not say what the teacher would not, and may leave things out."""

    function: ClassVar = reverse_kl
    kind: Literal["reverse-kl"] = "reverse-kl"
