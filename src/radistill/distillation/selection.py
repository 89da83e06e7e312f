"""Training on the tokens at which a drafter can still gain (AdaSPEC, arXiv 2510.19779).

A small model cannot learn all that its teacher says. A *reference*, a model of the drafter's size that was distilled
before, shows what such a model can learn: where the drafter is much further from the teacher than the reference is,
there is something to gain; where both are far, there is not.
"""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor

from radistill.distillation.losses.chunked import token_losses
from radistill.distillation.losses.top_k import TopK, over_categories
from radistill.models.divergence import forward_kl
from radistill.models.logits import ResponseStates
from radistill.models.sources import as_path


class TokenSelection(BaseModel, extra="forbid", allow_inf_nan=False):
    """Which tokens are trained on, and the model that tells them."""

    share: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="share of a batch's response tokens that carry loss: those at which the student's KL exceeds the "
        "reference's most",
    )
    reference: Annotated[str, AfterValidator(as_path)] = Field(
        min_length=1,
        description="a model of the student's size that was distilled before, such as the `student` of another run",
    )


def gaining(teacher: ResponseStates | TopK, student: ResponseStates, reference: ResponseStates, share: float) -> Tensor:
    """The tokens with the largest KL(teacher || student) - KL(teacher || reference), in nats.

    Args:
        teacher, student, reference: of the same response tokens.
        share: of them, above 0 and at most 1; rounded up to whole tokens.

    Returns:
        [tokens that are kept], long, ascending; of equals, the earlier ones.
    """
    kl = over_categories(forward_kl) if isinstance(teacher, TopK) else forward_kl

    def nats(model: ResponseStates) -> Tensor:
        return token_losses(lambda known, logits, _: kl(known, logits), teacher, model)

    gap = nats(student) - nats(reference).to(student.hidden.device)
    count = math.ceil(share * len(gap))
    return gap.sort(descending=True, stable=True).indices[:count].sort().values
