"""Forward KL: the student covers what the teacher says (Hinton et al., arXiv 1503.02531)."""

from typing import Literal

from torch import Tensor

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import forward_kl


class ForwardKL(DistributionLoss):
    """KL from teacher to student: the student must give weight to everything that the teacher says."""

    kind: Literal["forward-kl"] = "forward-kl"

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `forward_kl`."""
        return forward_kl(teacher_logits, student_logits, self.temperature)
