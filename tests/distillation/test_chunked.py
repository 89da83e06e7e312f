"""The chunked loss from hidden states: against loops, against plain autograd, and what it never holds."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_losses import every_loss, logits, naive, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from radistill.distillation.losses.chunked import TokenLoss, chunked_sum
from radistill.distillation.losses.distributions import cross_entropy_mix
from radistill.models.divergence import forward_kl
from radistill.models.logits import OutputEmbedding, ResponseStates

TOKENS, WIDTH, VOCAB = 33, 7, 41
SIZES = pytest.mark.parametrize(("chunk", "piece"), [(1, 1), (10 * VOCAB, 3 * VOCAB), (33 * VOCAB, 10**6), (10**6, 50)])


def states(
    seed: int,
    vocab: int = VOCAB,
    tokens: int = TOKENS,
    width: int = WIDTH,
    bias: bool = False,
    shape: Callable[[Tensor], Tensor] = lambda logits: logits,
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
) -> ResponseStates:
    """Random states of a model."""
    hidden, weight = logits(tokens, width, seed, 1.0), logits(vocab, width, seed + 50, 1.0)
    tensors = (hidden, weight, logits(1, vocab, seed + 90, 1.0)[0] if bias else None)
    hidden, weight, of_vocab = (None if t is None else t.to(dtype).requires_grad_(trained) for t in tensors)
    targets = torch.arange(tokens) % min(vocab, 30)
    return ResponseStates(hidden, OutputEmbedding(weight, of_vocab, shape), targets)


def student_states(**fields: Any) -> ResponseStates:
    return states(2, trained=True, **fields)


def inputs(student: ResponseStates) -> list[Tensor]:
    """What gradients flow to."""
    return [tensor for tensor in (student.hidden, *student.output[:2]) if tensor is not None and tensor.requires_grad]


def plain_sum(loss: TokenLoss, teacher: ResponseStates, student: ResponseStates) -> Tensor:
    everything = slice(None)
    return loss(teacher.logits(everything), student.logits(everything), student.targets).sum()


def without_targets(teacher: Tensor, student: Tensor, targets: Tensor) -> Tensor:
    return forward_kl(teacher, student)


def assert_same_gradients(found: Tensor, expected: Tensor, student: ResponseStates, tolerance: float = 1e-5) -> None:
    pairs = zip(
        torch.autograd.grad(found, inputs(student)), torch.autograd.grad(expected, inputs(student)), strict=True
    )
    for gradient, reference in pairs:
        assert gradient.dtype == reference.dtype
        assert (gradient - reference).norm() <= tolerance * reference.norm()


def half(values: Tensor) -> Tensor:
    return values / 2.0


def capped(values: Tensor) -> Tensor:
    return torch.tanh(values / 3) * 3


@every_loss
@SIZES
def test_it_is_the_sum_of_the_definitions(case: str, chunk: int, piece: int) -> None:
    teacher, student = states(1), student_states()
    loss = cross_entropy_mix(settings(case, 2.0), 0)
    found = chunked_sum(loss, teacher, student, chunk, piece)
    whole = [part.hidden.detach().double() @ part.output.weight.detach().double().T for part in (teacher, student)]
    torch.testing.assert_close(found.double(), naive(case, *whole, 2.0).sum(), rtol=1e-5, atol=0)
    assert_same_gradients(found, plain_sum(loss, teacher, student), student)


@SIZES
@pytest.mark.parametrize("shape", [half, capped])
@pytest.mark.parametrize("of_teacher", [VOCAB, VOCAB + 6, VOCAB - 6])
def test_bias_shape_padding_and_targets(
    chunk: int, piece: int, shape: Callable[[Tensor], Tensor], of_teacher: int
) -> None:
    """All at once, against plain autograd."""
    teacher, student = states(1, of_teacher, width=5, bias=True), student_states(bias=True, shape=shape)
    loss = cross_entropy_mix(settings("jsd-0.5"), 0.3)
    found, expected = chunked_sum(loss, teacher, student, chunk, piece), plain_sum(loss, teacher, student)
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found, expected, student)
    assert found.requires_grad
    of_padding = torch.autograd.grad(chunked_sum(loss, teacher, student), student.output.weight)[0][VOCAB - 6 :]
    assert (of_padding.abs().sum() == 0) == (of_teacher < VOCAB)


@pytest.mark.parametrize("case", ["forward-kl", "reverse-kl", "jsd-0.5", "skewed-kl-0.1"])
@pytest.mark.parametrize("trained", ["hidden", "weight", "both"])
def test_gradcheck(case: str, trained: str) -> None:
    double = partial(states, tokens=5, width=3, dtype=torch.float64, bias=True, shape=capped)
    teacher, student = double(1, 11), double(2, 9)
    loss = cross_entropy_mix(settings(case, 2.0), 0.2)

    def total(*tensors: Tensor) -> Tensor:
        hidden, weight, bias = tensors
        return chunked_sum(
            loss, teacher, ResponseStates(hidden, OutputEmbedding(weight, bias, capped), student.targets), 18, 9
        )

    given = (student.hidden, *student.output[:2])
    for tensor, name in zip(given, ("hidden", "weight", "weight"), strict=True):
        tensor.requires_grad_(trained in (name, "both"))
    assert torch.autograd.gradcheck(total, given)


def test_chunks_of_nothing_are_zero_with_zero_gradients() -> None:
    student = student_states(tokens=0)
    total = chunked_sum(without_targets, states(1, tokens=0), student)
    assert total.item() == 0.0
    gradients = torch.autograd.grad(total, inputs(student))
    assert [gradient.abs().sum().item() for gradient in gradients] == [0.0, 0.0]


def test_the_gradient_that_comes_from_above_counts() -> None:
    teacher, student = states(1), student_states()
    found = chunked_sum(without_targets, teacher, student, 50, 50) / -7
    assert_same_gradients(found, plain_sum(without_targets, teacher, student) / -7, student)


def test_gradients_of_several_batches_add_up() -> None:
    student = student_states()
    for seed in (1, 5):
        (chunked_sum(without_targets, states(seed), student, 100, 50) / 2).backward()
    expected = sum(plain_sum(without_targets, states(seed), student) / 2 for seed in (1, 5))
    for tensor, reference in zip(inputs(student), torch.autograd.grad(expected, inputs(student)), strict=True):
        torch.testing.assert_close(tensor.grad, reference)


def test_a_tied_weight_gets_both_gradients() -> None:
    teacher, tied = states(1), logits(VOCAB, WIDTH, 3, 1.0).requires_grad_()
    read = torch.arange(TOKENS)
    student = ResponseStates(tied[read].tanh(), OutputEmbedding(tied, None, half), teacher.targets)
    found, expected = (total(without_targets, teacher, student) for total in (chunked_sum, plain_sum))
    reference = torch.autograd.grad(expected, tied, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(found, tied)[0], reference)


def test_bfloat16_weights_have_their_gradient_added_up_in_float32() -> None:
    """Many small chunks, whose sum in bfloat16 would stop growing, against float64."""
    teacher = states(1, tokens=2000, dtype=torch.bfloat16)
    student = student_states(tokens=2000, dtype=torch.bfloat16)
    found = torch.autograd.grad(chunked_sum(without_targets, teacher, student, VOCAB), inputs(student))
    exact = [
        ResponseStates(
            part.hidden.detach().double().requires_grad_(),
            OutputEmbedding(part.output.weight.detach().double().requires_grad_(), None, half),
            part.targets,
        )
        for part in (teacher, student)
    ]
    exact = [part._replace(output=part.output._replace(shape=lambda values: values)) for part in exact]
    expected = torch.autograd.grad(plain_sum(without_targets, *exact), inputs(exact[1]))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16] * 2
    for gradient, reference in zip(found, expected, strict=True):
        assert (gradient.double() - reference).norm() < 0.01 * reference.norm()


def test_under_autocast_logits_have_its_number_format() -> None:
    teacher, student = states(1), student_states()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_sum(without_targets, teacher, student, 5 * VOCAB, VOCAB)
        expected = plain_sum(without_targets, teacher, student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert found != chunked_sum(without_targets, teacher, student)
    assert_same_gradients(found, expected, student, tolerance=0.02)


def test_a_loss_that_is_not_finite_is_seen() -> None:
    teacher, student = states(1), student_states()
    teacher.hidden[20] = math.nan
    assert chunked_sum(without_targets, teacher, student, 100, 50).isnan()


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that an operation gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        found = (leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        self.numbers = max([self.numbers, *found])
        return output


@every_loss
def test_the_logits_of_all_tokens_never_exist(case: str) -> None:
    """Forward and backward: no tensor is larger than a chunk, or than what the gradients are of."""
    tokens, vocab, width, chunk = 200, 100, 8, 1000
    teacher, student = states(1, vocab, tokens, width), student_states(vocab=vocab, tokens=tokens, width=width)
    loss = cross_entropy_mix(settings(case), 0.5)
    with Largest() as plain:
        plain_sum(loss, teacher, student).backward()
    with Largest() as chunked:
        chunked_sum(loss, teacher, student, chunk, 300).backward()
    assert plain.numbers == tokens * vocab
    assert chunked.numbers == max(tokens * width, vocab * width, chunk)


def test_a_frozen_output_embedding_has_no_gradient_computed() -> None:
    vocab, width = 300, 8
    teacher, student = states(1, vocab, width=width), student_states(vocab=vocab, width=width)
    student.output.weight.requires_grad_(False)

    class Products(TorchDispatchMode):
        """Counts matrix products that give a matrix of the weight's size."""

        def __init__(self) -> None:
            super().__init__()
            self.of_weight = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            made = isinstance(output, Tensor) and output.shape == (vocab, width) and "view" not in str(func)
            self.of_weight += made and not any(word in str(func) for word in ("slice", "detach", "alias"))
            return output

    with Products() as products:
        chunked_sum(without_targets, teacher, student).backward()
    assert products.of_weight == 0
    assert student.output.weight.grad is None
    assert student.hidden.grad is not None
    with torch.no_grad():
        assert not chunked_sum(without_targets, teacher, student).requires_grad


def test_nothing_is_kept_for_the_backward_but_the_gradients() -> None:
    teacher, student = states(1, 500), student_states(vocab=500)
    total = chunked_sum(without_targets, teacher, student, 1000, 500)
    kept = [tensor for tensor in total.grad_fn.saved_tensors if tensor is not None]  # there is no bias
    assert [tensor.shape for tensor in kept] == [tensor.shape for tensor in inputs(student)]
