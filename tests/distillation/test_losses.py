"""Losses against loops in Python's own floats."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from radistill.distillation.distill_settings import DistillSettings
from radistill.distillation.losses import LOSSES, ForwardKL, chunked_sum, forward_kl


def naive_forward_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> list[float]:
    """T^2 KL(p || q) of each token, written as the sum that defines it, in float64."""
    size = min(teacher.shape[1], student.shape[1])
    result = []
    for p_logits, q_logits in zip(teacher[:, :size].tolist(), student[:, :size].tolist(), strict=True):
        log_p, log_q = log_softmax(p_logits, temperature), log_softmax(q_logits, temperature)
        terms = [math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if p > -math.inf and math.exp(p) > 0]
        result.append(temperature**2 * sum(terms))
    return result


def log_softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    total = math.log(sum(math.exp((value - largest) / temperature) for value in logits))
    return [(value - largest) / temperature - total for value in logits]


def logits(tokens: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 2), (7, 64), (63, 259)])
def test_forward_kl_equals_its_definition(tokens: int, vocab: int, temperature: float) -> None:
    teacher, student = logits(tokens, vocab, 1), logits(tokens, vocab, 2)
    expected = torch.tensor(naive_forward_kl(teacher, student, temperature))
    torch.testing.assert_close(forward_kl(teacher, student, temperature), expected, rtol=1e-5, atol=1e-6)


def test_forward_kl_is_not_symmetric() -> None:
    """The written-down value for p = (3/4, 1/4), q = (1/4, 3/4) against q = (1/2, 1/2)."""
    p, q = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    assert forward_kl(p, q).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert forward_kl(q, p).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_t_times_the_difference_of_probabilities(temperature: float) -> None:
    """d/d student of T^2 KL at temperature T is T (q - p)."""
    teacher, student = logits(5, 31, 1), logits(5, 31, 2).requires_grad_()
    forward_kl(teacher, student, temperature).sum().backward()
    p = torch.softmax(teacher.double() / temperature, dim=-1)
    q = torch.softmax(student.detach().double() / temperature, dim=-1)
    assert student.grad is not None
    torch.testing.assert_close(student.grad.double(), temperature * (q - p), rtol=1e-5, atol=1e-6)


def test_equal_logits_give_exactly_zero() -> None:
    same = logits(9, 50, scale=30.0)
    assert forward_kl(same, same.clone(), 0.7).tolist() == [0.0] * 9


def test_huge_logits_stay_finite() -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]])
    student = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, -1e4], [1e4, -1e4, 1e4]], requires_grad=True)
    values = forward_kl(teacher, student)
    torch.testing.assert_close(values, torch.tensor(naive_forward_kl(teacher, student.detach())), rtol=1e-5, atol=1e-5)
    values.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_tokens_that_the_teacher_rules_out_add_nothing() -> None:
    teacher, student = logits(4, 12, 1), logits(4, 12, 2)
    teacher[:, 3] = -math.inf
    teacher[1, 5:] = -math.inf
    expected = torch.tensor(naive_forward_kl(teacher, student))
    student.requires_grad_()
    values = forward_kl(teacher, student)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    values.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    both = student.detach().clone()
    both[:, 3] = -math.inf
    assert torch.isfinite(forward_kl(teacher, both)).all()


def test_a_token_that_only_the_student_rules_out_costs_infinitely_much() -> None:
    student = logits(1, 6)
    student[0, 2] = -math.inf
    assert forward_kl(logits(1, 6, 1), student).item() == math.inf


def test_nan_is_seen_and_stays_in_its_row() -> None:
    for poisoned in ("teacher", "student"):
        pair = {"teacher": logits(3, 8, 1), "student": logits(3, 8, 2)}
        pair[poisoned][1, 4] = math.nan
        values = forward_kl(pair["teacher"], pair["student"])
        assert values.isnan().tolist() == [False, True, False]


def test_no_tokens_give_no_values() -> None:
    assert forward_kl(torch.empty(0, 5), torch.empty(0, 5)).shape == (0,)


@pytest.mark.parametrize(("of_teacher", "of_student"), [(64, 72), (72, 64)])
def test_padded_vocabularies_are_compared_on_what_both_have(of_teacher: int, of_student: int) -> None:
    teacher, student = logits(6, of_teacher, 1), logits(6, of_student, 2).requires_grad_()
    values = forward_kl(teacher, student)
    torch.testing.assert_close(values, forward_kl(teacher[:, :64], student[:, :64]), rtol=0, atol=0)
    values.sum().backward()
    assert student.grad is not None
    assert student.grad[:, 64:].abs().sum() == 0
    assert student.grad[:, :64].abs().sum() > 0


def test_half_precision_logits_are_compared_in_float32() -> None:
    teacher, student = logits(5, 40, 1).bfloat16(), logits(5, 40, 2).bfloat16()
    values = forward_kl(teacher, student)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, forward_kl(teacher.float(), student.float()), rtol=0, atol=0)


@pytest.mark.parametrize("chunk_numbers", [1, 100, 33 * 7, 10**6])
def test_chunks_change_nothing(chunk_numbers: int) -> None:
    teacher, student = logits(33, 40, 1), logits(33, 40, 2).requires_grad_()
    total = chunked_sum(ForwardKL(temperature=2.0), teacher, student, chunk_numbers)
    (gradient,) = torch.autograd.grad(total, student)
    whole = forward_kl(teacher, student, 2.0).sum()
    (expected,) = torch.autograd.grad(whole, student)
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_chunks_of_nothing_are_zero() -> None:
    assert chunked_sum(forward_kl, torch.empty(0, 5), torch.empty(0, 5, requires_grad=True)).item() == 0.0


def test_the_forward_keeps_nothing_but_the_logits() -> None:
    """A plain loss keeps float32 copies of both softmaxes for its backward; in chunks, none survives the forward."""
    teacher, student = logits(64, 128, 1), logits(64, 128, 2).requires_grad_()
    logits_storage = {teacher.untyped_storage().data_ptr(), student.untyped_storage().data_ptr()}

    def kept_bytes(chunked: bool) -> int:
        kept: dict[int, int] = {}

        def remember(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in logits_storage:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            total = chunked_sum(forward_kl, teacher, student, 1024) if chunked else forward_kl(teacher, student).sum()
        assert total.requires_grad
        return sum(kept.values())

    assert kept_bytes(chunked=False) >= 2 * teacher.numel() * 4
    assert kept_bytes(chunked=True) < teacher.numel() * 4 / 8


def test_settings_pick_a_loss_by_kind() -> None:
    settings = DistillSettings.model_validate({"loss": {"kind": "forward-kl", "temperature": 2.0}})
    assert settings.loss == ForwardKL(temperature=2.0)
    assert DistillSettings().loss.kind in LOSSES
    teacher, student = logits(3, 9, 1), logits(3, 9, 2)
    torch.testing.assert_close(settings.loss(teacher, student), forward_kl(teacher, student, 2.0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"kind": "kl"}, "forward-kl"),
        ({"kind": "forward-kl", "temperature": 0}, "greater than 0"),
        ({"kind": "forward-kl", "temperature": math.nan}, "temperature"),
        ({"kind": "forward-kl", "margin": 1}, "margin"),
    ],
)
def test_bad_settings_are_refused(loss: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillSettings.model_validate({"loss": loss})
