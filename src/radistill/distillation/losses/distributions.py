"""Losses between the next-token distributions of a teacher and a student, and the mix with the data's own tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional

from radistill.distillation.losses.chunked import TokenLoss
from radistill.models.divergence import kl_of_logs, log_probabilities, precise, skewed_kl_of_logs, tv_of_logs


class DistributionLoss(BaseModel, ABC, extra="forbid", allow_inf_nan=False):
    """A loss between two distributions, with its settings: a function from the logits of both to that of each token.

    In the formulas below, p is softmax(teacher / T) and q is softmax(student / T).
    """

    temperature: float = Field(default=1.0, gt=0, description="softens both distributions; the gradient keeps its size")

    def __call__(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """The loss of each token, in nats.

        Args:
            teacher_logits: [tokens, vocab]; see `log_probabilities`.
            student_logits: [tokens, vocab].

        Returns:
            [tokens], float32 (float64 for float64 logits); exactly 0 where the logits are equal. Some are infinite
            where one of both rules out (-inf) a token that the other does not.
        """
        return self.of_logs(*log_probabilities(teacher_logits, student_logits, self.temperature))

    @abstractmethod
    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        """The same from log-probabilities at temperature T, with the power of T that keeps the size of the gradient."""


class ForwardKL(DistributionLoss):
    """KL from teacher to student: the student must give weight to everything that the teacher says.

    T^2 * KL(p || q) (Hinton et al., arXiv 1503.02531); infinite where the student rules out what the teacher does not.
    """

    kind: Literal["forward-kl"] = "forward-kl"

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        return self.temperature**2 * kl_of_logs(p, q)


class ReverseKL(DistributionLoss):
    """KL from student to teacher: the student must not say what the teacher would not, and may leave things out.

    T^2 * KL(q || p) (MiniLLM, arXiv 2306.08543); infinite where the teacher rules out what the student does not.
    """

    kind: Literal["reverse-kl"] = "reverse-kl"

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        return self.temperature**2 * kl_of_logs(q, p)


class GeneralisedJSD(DistributionLoss):
    """Jensen-Shannon divergence with a weight: bounded, and between the two KLs.

    T^2 * (beta * KL(p || m) + (1 - beta) * KL(q || m)) with m = beta * p + (1 - beta) * q (GKD, arXiv 2306.13649). For
    0 < beta < 1 it is at most T^2 * log 2. As beta goes to 0 it goes to 0 as beta * KL(p || q) does, and as beta goes
    to 1, as (1 - beta) * KL(q || p) does; so that there is something to learn at the ends too, `beta` 0 stands for the
    whole forward KL and 1 for the whole reverse KL.
    """

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(
        default=0.5, ge=0, le=1, description="the teacher's share of the mixture; 0 is the forward KL, 1 the reverse KL"
    )

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        beta = self.beta
        if beta in (0, 1):
            value = kl_of_logs(q, p) if beta else kl_of_logs(p, q)
        else:
            value = beta * skewed_kl_of_logs(p, q, beta) + (1 - beta) * skewed_kl_of_logs(q, p, 1 - beta)
        return self.temperature**2 * value


class SkewedKL(DistributionLoss):
    """KL from the teacher to a mixture of teacher and student: a forward KL that stays finite.

    T^2 * KL(p || alpha * p + (1 - alpha) * q) (DistiLLM, arXiv 2402.03898). As alpha goes to 0 it goes to the forward
    KL, but it is at most T^2 * log(1 / alpha), and its gradient is bounded where the student all but rules out what the
    teacher says.
    """

    kind: Literal["skewed-kl"] = "skewed-kl"
    alpha: float = Field(default=0.1, gt=0, lt=1, description="the teacher's share of the mixture")

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        return self.temperature**2 * skewed_kl_of_logs(p, q, self.alpha)


class TotalVariation(DistributionLoss):
    """Half the sum of the differences of all probabilities: how often the teacher would reject the student's token.

    T * 1/2 * sum |p - q| (DistillSpec, arXiv 2310.08461), from 0 to T. Its gradient falls with T, not with T^2 as that
    of a KL does, hence the factor T.
    """

    kind: Literal["total-variation"] = "total-variation"

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        return self.temperature * tv_of_logs(p, q)


class LKAlpha(DistributionLoss):
    """Minus the logarithm of how often the teacher would accept the student's token.

    -T * log sum_v min(p_v, q_v) (arXiv 2602.23881). Total variation is one minus that sum; the logarithm makes the
    gradient larger by one over it, so that the tokens at which little is accepted do not go unheard. Everything is
    computed from logarithms: where next to nothing is shared, the loss is large and its gradient finite. It is infinite
    only where each of both rules out all that the other does not.
    """

    kind: Literal["lk-alpha"] = "lk-alpha"

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        shared = torch.minimum(p, q).logsumexp(dim=-1)
        # What probabilities add up to is 1 but for rounding, which is the same on both sides where these are equal.
        return self.temperature * (p.logsumexp(dim=-1) - shared)


class LKLambda(DistributionLoss):
    """Forward KL where little of the student is accepted, total variation where much is.

    share * T^2 * KL(p || q) + (1 - share) * T * TV(p, q) with share = exp(-eta * sum_v min(p_v, q_v)), through which no
    gradient flows (arXiv 2602.23881). A token that is never accepted has the KL, whose gradient reaches far; one that
    nearly always is has mostly the total variation, which is what counts in the end. As published the acceptance is a
    mean over a batch; here each token has its own, so that it can be taken by itself. It is infinite where the student
    rules out what the teacher does not.
    """

    kind: Literal["lk-lambda"] = "lk-lambda"
    eta: float = Field(
        default=3.0, ge=0, description="the KL's share is exp(-eta x acceptance) of each token; 0 is the KL alone"
    )

    def of_logs(self, p: Tensor, q: Tensor) -> Tensor:
        share = torch.exp(-self.eta * torch.minimum(p, q).exp().sum(dim=-1)).detach()
        variation = tv_of_logs(p, q)
        return share * self.temperature**2 * kl_of_logs(p, q) + (1 - share) * self.temperature * variation


LossSettings = Annotated[
    ForwardKL | ReverseKL | GeneralisedJSD | SkewedKL | TotalVariation | LKAlpha | LKLambda,
    Field(discriminator="kind"),
]


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

    The mix of Hinton et al. (arXiv 1503.02531). The cross-entropy has no temperature: it is about what the student will
    say. Like the losses, it leaves out entries of the student's vocabulary that the teacher's does not have.

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
