"""How far one next-token distribution is from another."""

import torch
from torch import Tensor


def log_probabilities(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of both, over the entries that both vocabularies have.

    The rest is padding of the embedding, which no tokenizer produces. Whether the difference is no more than that is
    the caller's to know (`check_same_tokenizer`).

    Args:
        teacher_logits: [tokens, vocab]; entries of -inf are tokens that the teacher rules out.
        student_logits: [tokens, vocab].
        temperature: T, above 0.

    Returns:
        Both [tokens, vocab], in float32, or in float64 where the logits are in float64.
    """
    vocabulary = min(teacher_logits.shape[-1], student_logits.shape[-1])
    teacher, student = (
        torch.log_softmax(precise(logits[:, :vocabulary]) / temperature, dim=-1)
        for logits in (teacher_logits, student_logits)
    )
    return teacher, student


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) of each token, in nats.

    The factor T^2 keeps the size of the gradient the same at every temperature.

    Args:
        teacher_logits: [tokens, vocab]; see `log_probabilities`.
        student_logits: [tokens, vocab].
        temperature: T, above 0.

    Returns:
        [tokens], float32 (float64 for float64 logits); empty for no tokens, exactly 0 where the logits are equal, and
        NaN where a token has a logit that is NaN, so that a caller who checks the sum sees it.
    """
    teacher, student = log_probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * kl_of_logs(teacher, student)


def kl_from(teacher_log_probabilities: Tensor, student_logits: Tensor) -> Tensor:
    """`forward_kl` at temperature 1 for a teacher whose log-probabilities are at hand.

    Args:
        teacher_log_probabilities: [tokens, vocab], float32.
        student_logits: [tokens, vocab], of the same vocabulary.

    Returns:
        [tokens], float32, in nats.
    """
    return kl_of_logs(teacher_log_probabilities, torch.log_softmax(student_logits.float(), dim=-1))


def kl_of_logs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each token from log-probabilities, [tokens, vocab] each to [tokens], in nats.

    Infinite where q rules out what p does not.
    """
    p = log_p.exp()
    # 0 * log 0 is 0 here, but NaN in floating point.
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim=-1)


def tv_of_logs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the sum of |p - q| of each token from log-probabilities, [tokens, vocab] each to [tokens], from 0 to 1."""
    return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2


def skewed_kl_of_logs(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(p || skew * p + (1 - skew) * q) of each token from log-probabilities, [tokens, vocab] to [tokens], in nats.

    Finite whatever p and q are, because the mixture rules out nothing that p does not.

    Args:
        log_p: [tokens, vocab].
        log_q: [tokens, vocab].
        skew: the share of p in the mixture, between 0 and 1, both excluded.
    """
    p = log_p.exp()
    # The mixture over p is 1 + (1 - skew) * (q / p - 1): exactly 1 where p and q are equal. Where p is so small that
    # q / p would overflow, the limit changes less than float32 can show.
    ratio = (log_q - log_p).masked_fill(p == 0, 0.0).clamp(max=_LARGEST_LOG_RATIO)
    return -(p * torch.log1p((1 - skew) * torch.expm1(ratio))).sum(dim=-1)


_LARGEST_LOG_RATIO = 85.0


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is in that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
