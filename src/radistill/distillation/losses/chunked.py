"""A loss over many tokens without many tokens' worth of memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS = 2**24
"""Logits in one chunk: 64 MiB for each float32 copy that a loss makes of them."""


def chunked_sum(
    loss: Callable[[Tensor, Tensor], Tensor],
    teacher_logits: Tensor,
    student_logits: Tensor,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Tensor:
    """Sum of `loss` over tokens, computed for a few tokens at a time.

    The float32 softmax of a whole batch, of teacher and student, with what its gradient needs, is several times the
    logits themselves. Here only one chunk of it exists at a time: the forward keeps none of it, and the backward
    computes it again, chunk by chunk.

    Args:
        loss: from [tokens, vocab] of the teacher and of the student to [tokens].
        teacher_logits: [tokens, vocab].
        student_logits: [tokens, vocab]; gradients flow to it.
        chunk_numbers: logits in one chunk; at least one token is taken.

    Returns:
        A scalar; 0 for no tokens.
    """
    tokens = max(1, chunk_numbers // max(teacher_logits.shape[-1], student_logits.shape[-1]))

    def total(teacher: Tensor, student: Tensor) -> Tensor:
        return loss(teacher, student).sum()

    # split, not slices: its backward joins the chunks' gradients instead of adding full-sized ones.
    parts = [
        checkpoint(total, teacher, student, use_reentrant=False, preserve_rng_state=False)
        for teacher, student in zip(teacher_logits.split(tokens), student_logits.split(tokens), strict=True)
    ]
    return torch.stack(parts).sum()
