"""Losses between the final hidden states of teacher and student (as in DistilBERT's cosine loss, arXiv 1910.01108).

Hidden states are what goes into the output embedding, so after the last norm. Both need models of the same width.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional

from radistill.errors import RadistillError
from radistill.models.divergence import precise


class HiddenLoss(BaseModel, ABC, extra="forbid", allow_inf_nan=False):
    """A loss between hidden states, with its settings: a function from those of both to that of each token."""

    weight: float = Field(default=1.0, gt=0, description="factor of this term, which is added to the loss")

    @abstractmethod
    def __call__(self, teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
        """[tokens, hidden] of each to [tokens], without the weight.

        In float32 (float64 for float64 states); exactly 0 where the states are equal.
        """


class HiddenMSE(HiddenLoss):
    """Mean squared difference of the final hidden states."""

    kind: Literal["mse"] = "mse"

    def __call__(self, teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
        """[tokens, hidden] of each to [tokens]."""
        return (precise(student_hidden) - precise(teacher_hidden)).square().mean(dim=-1)


class HiddenCosine(HiddenLoss):
    """1 - the cosine of the angle between the final hidden states.

    Their lengths do not matter, but none may be zero.
    """

    kind: Literal["cosine"] = "cosine"

    def __call__(self, teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
        """[tokens, hidden] of each to [tokens], from 0 to 2."""
        # Half the squared distance on the unit sphere: for a small angle, 1 - cos would be a difference of near equals.
        directions = [functional.normalize(precise(hidden), dim=-1) for hidden in (student_hidden, teacher_hidden)]
        return (directions[0] - directions[1]).square().sum(dim=-1) / 2


HiddenSettings = Annotated[HiddenMSE | HiddenCosine, Field(discriminator="kind")]


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
