"""Losses between the final hidden states of teacher and student (as in DistilBERT's cosine loss, arXiv 1910.01108).

Hidden states are what goes into the output embedding, so after the last norm. Both need
models of the same width.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional

from radistill.errors import RadistillError
from radistill.models.divergence import precise


def hidden_mse(teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
    """Mean squared difference of each token's hidden states.

    Args:
        teacher_hidden: [tokens, hidden].
        student_hidden: [tokens, hidden].

    Returns:
        [tokens], float32 (float64 for float64 states); exactly 0 where the states are equal.
    """
    return _difference(teacher_hidden, student_hidden).square().mean(dim=-1)


def hidden_cosine(teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
    """1 - the cosine of the angle between each token's hidden states, whose lengths do not matter.

    Args:
        teacher_hidden: [tokens, hidden]; no state may be zero.
        student_hidden: [tokens, hidden]; no state may be zero.

    Returns:
        [tokens], float32 (float64 for float64 states), from 0 to 2; exactly 0 where the states are equal.
    """
    # Half the squared distance on the unit sphere: for a small angle, 1 - cos would be a difference of near equals.
    directions = (functional.normalize(precise(hidden), dim=-1) for hidden in (teacher_hidden, student_hidden))
    return _difference(*directions).square().sum(dim=-1) / 2


class HiddenLoss(BaseModel, extra="forbid", allow_inf_nan=False):
    """Settings of a loss between hidden states; called with those of both, it gives the loss of each token."""

    function: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    weight: float = Field(default=1.0, gt=0, description="factor of this term, which is added to the loss")

    def __call__(self, teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
        """[tokens, hidden] of each to [tokens], without the weight."""
        return type(self).function(teacher_hidden, student_hidden)


class HiddenMSE(HiddenLoss):
    """Mean squared difference of the final hidden states."""

    function: ClassVar = hidden_mse
    kind: Literal["mse"] = "mse"


class HiddenCosine(HiddenLoss):
    """1 - the cosine of the angle between the final hidden states."""

    function: ClassVar = hidden_cosine
    kind: Literal["cosine"] = "cosine"


def check_same_width(of_teacher: int, of_student: int) -> None:
    """Refuse hidden states of different width, for which there is no such loss.

    Raises:
        RadistillError: naming the field that asks for it.
    """
    if of_teacher != of_student:
        raise RadistillError(
            f"distill.hidden: the teacher's hidden states have {of_teacher} numbers and the student's {of_student}; "
            "set it to null, or choose a teacher of the student's width"
        )


HiddenSettings = Annotated[HiddenMSE | HiddenCosine, Field(discriminator="kind")]


def _difference(teacher: Tensor, student: Tensor) -> Tensor:
    return precise(student) - precise(teacher)
