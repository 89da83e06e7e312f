"""Forward KL: the student covers what the teacher says (Hinton et al., arXiv 1503.02531)."""

from typing import ClassVar, Literal

from radistill.distillation.losses.base import DistributionLoss
from radistill.models.divergence import forward_kl


class ForwardKL(DistributionLoss):
    """KL from teacher to student: the student must give weight to everything that the teacher says."""

    function: ClassVar = forward_kl
    kind: Literal["forward-kl"] = "forward-kl"
