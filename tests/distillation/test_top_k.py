"""Losses over the k largest probabilities and the rest: against loops in float64, and against the whole vocabulary."""

import math

import pytest
import torch
from test_chunked import Largest, assert_same_gradients, plain_sum, states, student_states
from test_losses import CASES, Logs, defined, every_loss, log_softmax, logits, settings
from torch import Tensor

from radistill.distillation.losses.chunked import chunked_sum
from radistill.distillation.losses.distributions import cross_entropy_mix
from radistill.distillation.losses.top_k import TopK, over_categories, top_k_of

TEACHERS = pytest.mark.parametrize("k", [1, 2, 7, 40, 41, 99])


def merged(logs: Logs, ids: list[int]) -> Logs:
    """Log-probabilities of the tokens `ids` and, if there are others, of all others together."""
    rest = [value for token, value in enumerate(logs) if token not in ids]
    largest = max(rest, default=-math.inf)
    tail = largest
    if largest > -math.inf:
        tail += math.log(sum(math.exp(value - largest) for value in rest))
    return [logs[token] for token in ids] + ([tail] if rest else [])


def naive_top_k(case: str, teacher: Tensor, student: Tensor, k: int, held: Tensor | None = None) -> Tensor:
    """The loss of each token over the teacher's k most likely tokens and the rest, in Python's floats."""
    values = []
    rows = (logits.tolist() for logits in (teacher, student, student if held is None else held))
    for p, q, of_held in zip(*rows, strict=True):
        ids = sorted(range(len(p)), key=lambda token: -p[token])[:k]
        log_p, log_q, log_held = (merged(log_softmax(row[: len(p)], 1.0), ids) for row in (p, q, of_held))
        values.append(defined(case, log_p, log_q, held=log_held))
    return torch.tensor(values, dtype=torch.float64)


def value_and_gradient(case: str, teacher: Tensor | TopK, student: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = settings(case)
    values = over_categories(loss)(teacher, student) if isinstance(teacher, TopK) else loss(teacher, student)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


@every_loss
@TEACHERS
def test_it_is_the_definition_on_the_categories(case: str, k: int) -> None:
    teacher, student = logits(9, 41, 1).double(), logits(9, 41, 2).double()
    found, _ = value_and_gradient(case, top_k_of(teacher, k), student)
    torch.testing.assert_close(found, naive_top_k(case, teacher, student, k), rtol=1e-10, atol=1e-12)


@every_loss
@pytest.mark.parametrize("k", [1, 3, 6])
def test_its_gradient_is_that_of_the_definition(case: str, k: int) -> None:
    """Against central differences of the loop."""
    teacher, student = logits(3, 6, 1).double(), logits(3, 6, 2).double()
    step, expected = 1e-5, torch.zeros_like(student)
    for entry in range(student.numel()):
        shift = torch.zeros_like(student)
        shift.view(-1)[entry] = step
        moved = (student + shift, student - shift)
        higher, lower = (naive_top_k(case, teacher, one, k, held=student).sum() for one in moved)
        expected.view(-1)[entry] = (higher - lower) / (2 * step)
    _, found = value_and_gradient(case, top_k_of(teacher, k), student)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@every_loss
@pytest.mark.parametrize("k", [41, 99])
def test_all_of_the_vocabulary_is_the_whole_loss(case: str, k: int) -> None:
    teacher, student = logits(9, 41, 1).double(), logits(9, 41, 2).double()
    for found, expected in zip(
        value_and_gradient(case, top_k_of(teacher, k), student),
        value_and_gradient(case, teacher, student),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case != "lk-lambda"])
def test_more_tokens_never_lower_it_and_all_of_them_bound_it(case: str) -> None:
    """The data processing inequality: merging categories loses information. With one merged less, less is lost."""
    teacher, student = logits(50, 41, 1).double(), logits(50, 41, 2).double()
    whole = settings(case)(teacher, student)
    before = torch.zeros(50, dtype=torch.float64)
    for k in range(1, 42):
        found, _ = value_and_gradient(case, top_k_of(teacher, k), student)
        assert (found >= before - 1e-12).all()
        before = found
    torch.testing.assert_close(before, whole)
    assert (value_and_gradient(case, top_k_of(teacher, 1), student)[0] < whole - 1e-6).any()


@every_loss
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_hostile_logits_give_no_nan(case: str, k: int) -> None:
    """A probability of exactly one, tokens ruled out by the teacher, by the student, by both; huge logits."""
    infinity = math.inf
    teacher = torch.tensor(
        [
            [0.0, -infinity, -infinity, -infinity, -infinity],
            [1e4, 0.0, -1e4, 0.1, 0.2],
            [1.0, 2.0, -infinity, 0.0, -1.0],
            [0.4, 0.3, 0.2, 0.1, 0.0],
            [3.0, 1.0, 0.0, -200.0, -300.0],
        ]
    ).double()
    student = torch.tensor(
        [
            [0.0, 1.0, 2.0, 0.0, 0.0],
            [0.0, 1e4, 0.0, -1e4, 0.0],
            [1.0, 2.0, -infinity, 0.0, -1.0],
            [0.0, -infinity, 0.0, -infinity, -infinity],
            [300.0, 1.0, -infinity, 0.0, -infinity],
        ]
    ).double()
    found, gradient = value_and_gradient(case, top_k_of(teacher, k), student)
    expected = naive_top_k(case, teacher, student, k)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not gradient[expected.isfinite()].isnan().any()
    in_float32, _ = value_and_gradient(case, top_k_of(teacher.float(), k), student.float())
    torch.testing.assert_close(in_float32.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_tail_whose_mass_is_below_rounding_is_kept() -> None:
    """1 - sum of the probabilities would be 0 in float32, and its logarithm -inf."""
    student = torch.tensor([[0.0, -40.0, -41.0]])
    top = top_k_of(student, 1)
    assert top.tail.item() == pytest.approx(math.log(math.exp(-40) + math.exp(-41)), rel=1e-6)
    assert torch.log_softmax(top.categories_of(student), dim=1)[0, 1].item() == pytest.approx(top.tail.item(), rel=1e-6)


def test_the_first_of_the_most_likely_tokens_is_the_best() -> None:
    assert top_k_of(torch.tensor([[0.0, 5.0, 5.0, 5.0]]), 1).best.tolist() == [1]


@every_loss
@pytest.mark.parametrize("k", [1, 5, 35])
@pytest.mark.parametrize(("chunk", "piece"), [(1, 1), (410, 123), (10**6, 50)])
def test_chunked_it_is_the_sum(case: str, k: int, chunk: int, piece: int) -> None:
    """With cross-entropy, for which the student's whole distribution counts, and a smaller vocabulary."""
    student, full = student_states(), states(1, vocab=35)
    top = top_k_of(full.logits(slice(None)), k)
    loss = cross_entropy_mix(over_categories(settings(case)), 0.3)
    found = chunked_sum(loss, top, student, chunk, piece)
    known = student.logits(slice(None))[:, :35]
    expected = loss(top, known, student.targets).sum()
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found, expected, student)
    if k == 35:
        torch.testing.assert_close(found, plain_sum(cross_entropy_mix(settings(case), 0.3), full, student))


def test_the_logits_of_all_tokens_never_exist() -> None:
    tokens, vocab, width, chunk = 200, 100, 8, 1000
    student = student_states(vocab=vocab, tokens=tokens, width=width)
    top = top_k_of(states(1, vocab, tokens, width).logits(slice(None)), 4)
    loss = cross_entropy_mix(over_categories(settings("forward-kl")), 0.5)
    with Largest() as chunked:
        chunked_sum(loss, top, student, chunk, 300).backward()
    assert chunked.numbers == max(tokens * width, vocab * width, chunk)


def test_under_autocast_a_known_distribution_is_not_rounded() -> None:
    student, top = student_states(), top_k_of(states(1).logits(slice(None)), 5)
    loss = cross_entropy_mix(over_categories(settings("forward-kl")), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_sum(loss, top, student, 200, 41)
        expected = loss(top, student.logits(slice(None)), student.targets).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_no_tokens_are_zero() -> None:
    student, top = student_states(tokens=0), top_k_of(torch.empty(0, 41), 3)
    assert chunked_sum(cross_entropy_mix(over_categories(settings("jsd-0.5")), 0), top, student).item() == 0
