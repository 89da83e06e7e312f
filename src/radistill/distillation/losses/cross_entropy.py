"""Cross-entropy to the data's own tokens, alone or mixed with a loss to a teacher (Hinton et al., arXiv 1503.02531)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from radistill.distillation.losses.chunked import TokenLoss
from radistill.models.divergence import precise


def cross_entropy(teacher_logits: Any, student_logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(student)[token] of each token, in nats, whatever a teacher says.

    Args:
        teacher_logits: not looked at; None where there is no teacher.
        student_logits: [tokens, vocab].
        targets: [tokens], long, the tokens themselves.

    Returns:
        [tokens], float32 at least.
    """
    return functional.cross_entropy(precise(student_logits), targets, reduction="none")


def cross_entropy_mix(loss: Callable[[Any, Tensor], Tensor], share: float) -> TokenLoss:
    """share * -log softmax(student)[token] + (1 - share) * loss(teacher, student), of each token, in nats.

    The cross-entropy has no temperature: it is about what the student will say. Like the losses, it leaves out entries
    of the student's vocabulary that the teacher's does not have.

    Args:
        loss: from the logits of teacher and student, [tokens, vocab] each, to [tokens]; the teacher's may be a `TopK`.
        share: from 0 to below 1; at 0, the mix is `loss` itself and nothing else is computed.

    Returns:
        A function of teacher logits, student logits and the tokens themselves, [tokens], long.
    """

    def mix(teacher_logits: Any, student_logits: Tensor, targets: Tensor) -> Tensor:
        divergence = loss(teacher_logits, student_logits)
        if share == 0:
            return divergence
        vocabulary = min(teacher_logits.shape[-1], student_logits.shape[-1])
        return share * cross_entropy(None, student_logits[:, :vocabulary], targets) + (1 - share) * divergence

    return mix
