"""How far one next-token distribution is from another."""

import torch
from torch import Tensor


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) of each token, in nats, computed in float32.

    The factor T^2 keeps the size of the gradient the same at every temperature. Vocabularies of different size are
    compared on the entries that both have: the rest is padding of the embedding, which no tokenizer produces. Whether
    the difference is no more than that is the caller's to know (`check_same_tokenizer`).

    Args:
        teacher_logits: [tokens, vocab]; entries of -inf are tokens that the teacher rules out.
        student_logits: [tokens, vocab].
        temperature: T, above 0.

    Returns:
        [tokens], float32; empty for no tokens, exactly 0 where the logits are equal, and NaN where a token has a logit
        that is NaN, so that a caller who checks the sum sees it.
    """
    vocabulary = min(teacher_logits.shape[-1], student_logits.shape[-1])
    teacher = torch.log_softmax(teacher_logits[:, :vocabulary].float() / temperature, dim=-1)
    return temperature**2 * kl_from(teacher, student_logits[:, :vocabulary].float() / temperature)


def kl_from(teacher_log_probabilities: Tensor, student_logits: Tensor) -> Tensor:
    """`forward_kl` at temperature 1 for a teacher whose log-probabilities are at hand.

    Args:
        teacher_log_probabilities: [tokens, vocab], float32.
        student_logits: [tokens, vocab], of the same vocabulary.

    Returns:
        [tokens], float32, in nats.
    """
    return kl_between(teacher_log_probabilities, torch.log_softmax(student_logits.float(), dim=-1))


def kl_between(teacher_log_probabilities: Tensor, student_log_probabilities: Tensor) -> Tensor:
    """`kl_from` where the student's log-probabilities are at hand too; [tokens, vocab] of each to [tokens]."""
    probability = teacher_log_probabilities.exp()
    # 0 * log 0 is 0 here, but NaN in floating point.
    difference = (teacher_log_probabilities - student_log_probabilities).masked_fill(probability == 0, 0.0)
    return (probability * difference).sum(dim=-1)
