"""What the settings of all losses share."""

from typing import Annotated

from pydantic import BaseModel, Field
from torch import Tensor

Temperature = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False, description="softens both distributions; the gradient keeps its size"),
]


class DistributionLoss(BaseModel, extra="forbid"):
    """Settings of a loss between two distributions; called with logits of both, it gives the loss of each token."""

    temperature: Temperature = 1.0

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """[tokens, vocab] of each to [tokens], float32 at least."""
        raise NotImplementedError
