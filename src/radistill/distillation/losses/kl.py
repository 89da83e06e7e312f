"""Forward KL: the student covers what the teacher says (Hinton et al., arXiv 1503.02531)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from radistill.models.divergence import forward_kl


class ForwardKL(BaseModel):
    """Settings of the loss `forward-kl`; called with teacher and student logits, it gives the loss of each token."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["forward-kl"] = "forward-kl"
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="softens both distributions; the loss is multiplied by T^2"
    )

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """[tokens, vocab] of each to [tokens]; see `forward_kl`."""
        return forward_kl(teacher_logits, student_logits, self.temperature)
