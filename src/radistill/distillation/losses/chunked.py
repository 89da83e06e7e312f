"""A loss over many tokens and a large vocabulary, without the logits of many tokens at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from radistill.distillation.losses.top_k import TopK
from radistill.models.logits import ResponseStates

TokenLoss = Callable[[Any, Tensor, Tensor], Tensor]
"""From the logits of teacher and student, [tokens, vocab] each, and the tokens themselves, [tokens], to [tokens].

In the place of the teacher's logits stands a `TopK` where no more is known of them, and None without a teacher."""

CHUNK_NUMBERS = 2**26
"""Logits that one matrix product makes: 256 MiB in float32. Fewer would multiply too few rows at a time."""

_PIECE_ON_CPU, _PIECE_ON_GPU = 2**19, 2**24
"""Logits that the loss works on at a time. On a CPU, 2 MiB in float32: what it makes of them stays in the cache. On a
GPU, enough for its kernels to be worth starting; their best number has not been measured."""


def chunked_sum(
    loss: TokenLoss,
    teacher: ResponseStates | TopK | None,
    student: ResponseStates,
    chunk_numbers: int = CHUNK_NUMBERS,
    piece_numbers: int | None = None,
) -> Tensor:
    """Sum of `loss` over tokens, from hidden states and output embeddings; the logits never exist as a whole.

    The logits of a batch, of teacher and student, with the softmaxes that a loss makes of them and their gradients, are
    by far the largest thing in a distillation step. Here the logits of one chunk of tokens exist at a time, and within
    it the loss and its gradient are computed piece by piece, the gradient in the place of the student's logits. It goes
    on to the hidden states and the output embedding at once, in the forward: so nothing is computed twice, as it would
    be if the backward had to come back for the logits, and what the backward keeps has the size of those two.

    Logits have the number format that the network itself would give them (that of autocast where it is on); the
    gradient of the output embedding is added up in float32 at least. Vocabularies of different size are compared on
    the entries that both have, before the softmax: the rest is padding (see `check_same_tokenizer`), and its gradient
    is zero.

    Args:
        loss: of each token; it must not look at other tokens.
        teacher: its states, without gradient, perhaps on another device, where its logits are then computed; or what
            is known of its distributions, which `loss` gets as it is. None for a loss that looks at the student alone.
        student: gradients flow to its hidden states, and to weight and bias if they are trained.
        chunk_numbers: logits of one model in one chunk; at least one token is taken.
        piece_numbers: logits of one model that the loss sees at a time; at least one token. None suits the device.

    Returns:
        A scalar, in float32 at least; 0 with zero gradients for no tokens.
    """
    work = _Work.of(loss, teacher, student, chunk_numbers, piece_numbers)
    with torch.autocast(student.hidden.device.type, enabled=False):
        return _ChunkedSum.apply(work, work.student.hidden, *work.student.output[:2])


@torch.no_grad()
def token_losses(
    loss: TokenLoss,
    teacher: ResponseStates | TopK | None,
    student: ResponseStates,
    chunk_numbers: int = CHUNK_NUMBERS,
    piece_numbers: int | None = None,
) -> Tensor:
    """The terms of `chunked_sum`, [tokens], in float32 at least, without gradients."""
    work = _Work.of(loss, teacher, student, chunk_numbers, piece_numbers)
    with torch.autocast(student.hidden.device.type, enabled=False):
        return work.values(_Gradients(work.student, (False, False, False)))


class _ChunkedSum(torch.autograd.Function):
    """The sum, with its gradients computed in the forward."""

    @staticmethod
    def forward(ctx: Any, work: "_Work", *inputs: Tensor | None) -> Tensor:
        # The inputs are in `work` too; autograd wants to see what gradients flow to as arguments of their own.
        gradients = _Gradients(work.student, ctx.needs_input_grad[1:])
        values = work.values(gradients)
        ctx.save_for_backward(*gradients.found())
        ctx.dtypes = [None if part is None else part.dtype for part in inputs]
        return values.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, *(None if part is None else (part * gradient).to(dtype) for part, dtype in found)


class _Work(NamedTuple):
    """What is summed, and how much of it at a time.

    Attributes:
        loss, teacher, student: as in `chunked_sum`, the latter two in the format of matrix products.
        vocabulary: entries that count.
        chunk: tokens in one chunk.
        piece: tokens in one piece of it.
    """

    loss: TokenLoss
    teacher: ResponseStates | TopK | None
    student: ResponseStates
    vocabulary: int
    chunk: int
    piece: int

    @classmethod
    def of(
        cls,
        loss: TokenLoss,
        teacher: ResponseStates | TopK | None,
        student: ResponseStates,
        chunk_numbers: int,
        piece_numbers: int | None,
    ) -> "_Work":
        """The arguments are those of `chunked_sum`."""
        vocabulary = min(known.vocabulary for known in (teacher, student) if known is not None)
        device = student.hidden.device.type
        if piece_numbers is None:
            piece_numbers = _PIECE_ON_CPU if device == "cpu" else _PIECE_ON_GPU
        if torch.is_autocast_enabled(device):
            # Once, and not in every chunk; autograd takes the gradients back to the formats of before.
            dtype = torch.get_autocast_dtype(device)
            teacher = _cast(teacher, dtype) if isinstance(teacher, ResponseStates) else teacher
            student = _cast(student, dtype)
        chunk, piece = (max(1, numbers // vocabulary) for numbers in (chunk_numbers, piece_numbers))
        return cls(loss, teacher, student, vocabulary, chunk, piece)

    def values(self, gradients: "_Gradients") -> Tensor:
        """[tokens], the loss of each; `gradients` gets those that it wants."""
        hidden = self.student.hidden
        # One place for each token: a small tensor for each piece, left between large ones that come and go, would keep
        # the allocator from using their memory again.
        values = torch.zeros(len(hidden), dtype=_accumulator(hidden), device=hidden.device)
        for start in range(0, len(hidden), self.chunk):
            self._take_chunk(slice(start, start + self.chunk), gradients, values)
        return values

    def _take_chunk(self, rows: slice, gradients: "_Gradients", values: Tensor) -> None:
        """Write the loss of a chunk's tokens to `values`. In a method, so that its logits are gone before the next."""
        raw = self.student.raw_logits(rows, self.vocabulary)
        of_teacher = None if self.teacher is None else self.teacher.logits(rows, self.vocabulary)
        targets, values = self.student.targets[rows], values[rows]
        for start in range(0, len(raw), self.piece):
            piece = slice(start, start + self.piece)
            leaf = raw[piece].detach().requires_grad_(gradients.wanted)
            with torch.set_grad_enabled(gradients.wanted):
                known = None if of_teacher is None else of_teacher[piece].to(raw.device)
                of_tokens = self.loss(known, self.student.output.shape(leaf), targets[piece])
                if gradients.wanted:
                    # The logits are not needed any more, and their gradient takes their place.
                    raw[piece] = torch.autograd.grad(of_tokens.sum(), leaf)[0]
            values[piece] = of_tokens.detach()
        gradients.add(rows, raw)


class _Gradients:
    """Gradients of the sum with respect to hidden states, weight and bias: those that are wanted, chunk by chunk."""

    def __init__(self, student: ResponseStates, wanted: tuple[bool, bool, bool]) -> None:
        hidden, (weight, bias, _) = student.hidden, student.output
        dtype = _accumulator(weight)
        self._inputs = hidden, weight
        self.wanted = any(wanted)
        self._hidden = torch.empty_like(hidden) if wanted[0] else None
        self._weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
        self._bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and wanted[2] else None

    def add(self, rows: slice, logits: Tensor) -> None:
        """Take in the gradient [rows, vocab] with respect to the logits before `shape`."""
        hidden, weight = self._inputs
        vocabulary = logits.shape[1]
        if self._hidden is not None:
            torch.mm(logits, weight[:vocabulary], out=self._hidden[rows])
        if self._weight is not None:
            total = self._weight[:vocabulary]
            if total.dtype == logits.dtype:
                total.addmm_(logits.T, hidden[rows])
            else:
                total += logits.T @ hidden[rows]
        if self._bias is not None:
            self._bias[:vocabulary] += logits.sum(dim=0, dtype=self._bias.dtype)

    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sums, in the order hidden states, weight, bias; None where none was wanted."""
        return self._hidden, self._weight, self._bias


def _accumulator(tensor: Tensor) -> torch.dtype:
    """Number format of sums over many tokens: float32, or float64 where the tensor has that."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _cast(states: ResponseStates, dtype: torch.dtype) -> ResponseStates:
    weight, bias, shape = states.output
    output = states.output._replace(weight=weight.to(dtype), bias=None if bias is None else bias.to(dtype), shape=shape)
    return states._replace(hidden=states.hidden.to(dtype), output=output)
