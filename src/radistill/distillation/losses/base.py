"""What the settings of all losses share."""

from collections.abc import Callable
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor


class DistributionLoss(BaseModel, extra="forbid", allow_inf_nan=False):
    """Settings of a loss between two distributions; called with logits of both, it gives the loss of each token.

    Attributes:
        function: the loss, whose further arguments are the settings.
    """

    function: ClassVar[Callable[..., Tensor]]

    temperature: float = Field(default=1.0, gt=0, description="softens both distributions; the gradient keeps its size")

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """[tokens, vocab] of each to [tokens], float32 at least."""
        settings = {name: value for name, value in self if name != "kind"}
        return type(self).function(teacher_logits, student_logits, **settings)
