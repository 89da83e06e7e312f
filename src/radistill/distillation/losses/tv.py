"""Total variation: how often what the student drafts is rejected (DistillSpec, arXiv 2310.08461)."""

from typing import ClassVar, Literal

from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import log_probabilities, tv_of_logs


def total_variation(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T * 1/2 * sum |softmax(teacher / T) - softmax(student / T)| of each token.

    At T = 1 it is the probability that a token drafted by the student is rejected by the teacher. Its gradient falls
    with T, not with T^2 as that of a KL does, hence the factor T.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab].
        temperature: T, above 0.

    Returns:
        [tokens], float32 (float64 for float64 logits), from 0 to T; exactly 0 with zero gradient where the logits are
        equal.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    return temperature * tv_of_logs(teacher, student)


class TotalVariation(DistributionLoss):
    """Half the sum of the differences of all probabilities: how often the teacher would reject the student's token."""

    function: ClassVar = total_variation
    kind: Literal["total-variation"] = "total-variation"
