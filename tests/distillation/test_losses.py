"""Losses against loops in Python's own floats."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from radistill.distillation.losses.distributions import (
    GeneralisedJSD,
    LKAlpha,
    LKLambda,
    LossSettings,
    ReverseKL,
    SkewedKL,
    TotalVariation,
    cross_entropy_mix,
)
from radistill.distillation.losses.hidden import HiddenCosine, HiddenMSE
from radistill.distillation.settings import DistillSettings
from radistill.models.divergence import forward_kl

Logs = list[float]

# ---- the definitions, on the log-probabilities of one token ----


def kl(log_p: Logs, log_q: Logs) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if math.exp(p) > 0)


def mixture(log_p: Logs, log_q: Logs, share: float) -> Logs:
    mixed = [share * math.exp(p) + (1 - share) * math.exp(q) for p, q in zip(log_p, log_q, strict=True)]
    return [math.log(value) if value > 0 else -math.inf for value in mixed]


def jsd(log_p: Logs, log_q: Logs, beta: float) -> float:
    if beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    middle = mixture(log_p, log_q, beta)
    return beta * kl(log_p, middle) + (1 - beta) * kl(log_q, middle)


def variation(log_p: Logs, log_q: Logs) -> float:
    return sum(abs(math.exp(p) - math.exp(q)) for p, q in zip(log_p, log_q, strict=True)) / 2


def accepted(log_p: Logs, log_q: Logs) -> float:
    return sum(math.exp(min(pair)) for pair in zip(log_p, log_q, strict=True))


def minus_log_accepted(log_p: Logs, log_q: Logs) -> float:
    """In logarithms, because a sum of what underflows would be 0."""
    smaller = [min(pair) for pair in zip(log_p, log_q, strict=True)]
    largest = max(smaller)
    return -largest - math.log(sum(math.exp(value - largest) for value in smaller))


def lambda_mix(log_p: Logs, log_q: Logs, held: Logs, temperature: float) -> float:
    share = math.exp(-3 * accepted(log_p, held))
    return share * temperature**2 * kl(log_p, log_q) + (1 - share) * temperature * variation(log_p, log_q)


# Settings of a loss, its definition, and the power of T that it is multiplied by. None is of a definition that knows T,
# and takes the student's log-probabilities a second time, for a share through which no gradient flows.
CASES: dict[str, tuple[dict[str, object], Callable[..., float], int | None]] = {
    "forward-kl": ({"kind": "forward-kl"}, kl, 2),
    "reverse-kl": ({"kind": "reverse-kl"}, lambda p, q: kl(q, p), 2),
    "jsd-0": ({"kind": "jsd", "beta": 0}, kl, 2),
    "jsd-0.1": ({"kind": "jsd", "beta": 0.1}, lambda p, q: jsd(p, q, 0.1), 2),
    "jsd-0.5": ({"kind": "jsd"}, lambda p, q: jsd(p, q, 0.5), 2),
    "jsd-1": ({"kind": "jsd", "beta": 1}, lambda p, q: kl(q, p), 2),
    "skewed-kl-0.1": ({"kind": "skewed-kl"}, lambda p, q: kl(p, mixture(p, q, 0.1)), 2),
    "skewed-kl-0.9": ({"kind": "skewed-kl", "alpha": 0.9}, lambda p, q: kl(p, mixture(p, q, 0.9)), 2),
    "total-variation": ({"kind": "total-variation"}, variation, 1),
    "lk-alpha": ({"kind": "lk-alpha"}, minus_log_accepted, 1),
    "lk-lambda": ({"kind": "lk-lambda"}, lambda_mix, None),
}
every_loss = pytest.mark.parametrize("case", CASES)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])


def settings(case: str, temperature: float = 1.0) -> LossSettings:
    return TypeAdapter(LossSettings).validate_python({**CASES[case][0], "temperature": temperature})


def defined(case: str, log_p: Logs, log_q: Logs, temperature: float = 1.0, held: Logs | None = None) -> float:
    """The loss of one token; `held` is the student where no gradient flows."""
    _, definition, power = CASES[case]
    if power is None:
        return definition(log_p, log_q, log_q if held is None else held, temperature)
    return temperature**power * definition(log_p, log_q)


def naive(case: str, teacher: Tensor, student: Tensor, temperature: float = 1.0, held: Tensor | None = None) -> Tensor:
    """The loss of each token, [tokens], in float64, over the entries that both vocabularies have."""
    size = min(teacher.shape[1], student.shape[1])
    rows = (logits[:, :size].tolist() for logits in (teacher, student, student if held is None else held))
    logs = [[log_softmax(row, temperature) for row in token] for token in zip(*rows, strict=True)]
    values = [defined(case, log_p, log_q, temperature, log_held) for log_p, log_q, log_held in logs]
    return torch.tensor(values, dtype=torch.float64)


def naive_forward_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> list[float]:
    """T^2 KL(p || q) of each token."""
    return naive("forward-kl", teacher, student, temperature).tolist()


def log_softmax(logits: list[float], temperature: float) -> Logs:
    largest = max(logits)
    total = math.log(sum(math.exp((value - largest) / temperature) for value in logits))
    return [(value - largest) / temperature - total for value in logits]


def logits(tokens: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed))


def gradient(case: str, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    student = student.detach().requires_grad_()
    return torch.autograd.grad(settings(case, temperature)(teacher, student).sum(), student)[0]


def assert_is_the_definition(case: str, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> None:
    found = settings(case, temperature)(teacher, student).double()
    torch.testing.assert_close(found, naive(case, teacher, student, temperature), rtol=1e-5, atol=1e-6)


# ---- every loss ----


@every_loss
@TEMPERATURES
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 2), (7, 64), (63, 259)])
def test_it_equals_its_definition(case: str, tokens: int, vocab: int, temperature: float) -> None:
    assert_is_the_definition(case, logits(tokens, vocab, 1), logits(tokens, vocab, 2), temperature)


@every_loss
@TEMPERATURES
@pytest.mark.parametrize("ruled_out", [False, True])
def test_its_gradient_is_that_of_the_definition(case: str, temperature: float, ruled_out: bool) -> None:
    """Against central differences of the loop in float64, and float32 against float64."""
    teacher, student = logits(3, 6, 1).double(), logits(3, 6, 2).double()
    if ruled_out and case not in INFINITE_WITHOUT_TEACHER:
        teacher[:, 2] = -math.inf
    step, expected = 1e-5, torch.zeros_like(student)
    for entry in range(student.numel()):
        shift = torch.zeros_like(student)
        shift.view(-1)[entry] = step
        higher, lower = (
            naive(case, teacher, moved, temperature, held=student).sum() for moved in (student + shift, student - shift)
        )
        expected.view(-1)[entry] = (higher - lower) / (2 * step)
    found = gradient(case, teacher, student, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    in_float32 = gradient(case, teacher.float(), student.float(), temperature)
    torch.testing.assert_close(in_float32.double(), found, rtol=1e-5, atol=1e-6)


@every_loss
@TEMPERATURES
def test_equal_logits_give_exactly_zero_and_no_gradient(case: str, temperature: float) -> None:
    same = logits(9, 50, scale=30.0)
    assert settings(case, temperature)(same, same.clone()).abs().tolist() == [0.0] * 9
    torch.testing.assert_close(gradient(case, same, same, temperature), torch.zeros_like(same), rtol=0, atol=1e-6)


@every_loss
def test_huge_logits_stay_finite(case: str) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [0.0, -95.0, -105.0]])
    student = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, -1e4], [1e4, -1e4, 1e4], [-105.0, 0.0, -95.0]])
    assert_is_the_definition(case, teacher, student)
    assert torch.isfinite(gradient(case, teacher, student)).all()


INFINITE_WITHOUT_TEACHER = ("reverse-kl", "jsd-1")
INFINITE_WITHOUT_STUDENT = ("forward-kl", "jsd-0", "lk-lambda")


@every_loss
def test_a_token_that_the_teacher_rules_out(case: str) -> None:
    """Its probability is 0: nothing is added, but where the student must not say what the teacher would not."""
    teacher, student = logits(4, 12, 1), logits(4, 12, 2)
    teacher[:, 3] = -math.inf
    teacher[1, 5:] = -math.inf
    assert_is_the_definition(case, teacher, student)
    if case in INFINITE_WITHOUT_TEACHER:
        assert settings(case)(teacher, student).tolist() == [math.inf] * 4
    else:
        assert torch.isfinite(gradient(case, teacher, student)).all()


@every_loss
def test_a_token_that_the_student_rules_out(case: str) -> None:
    teacher, student = logits(2, 6, 1), logits(2, 6, 2)
    student[0, 2] = -math.inf
    assert_is_the_definition(case, teacher, student)
    if case in INFINITE_WITHOUT_STUDENT:
        assert settings(case)(teacher, student)[0].item() == math.inf
    else:
        assert torch.isfinite(gradient(case, teacher, student)).all()


@every_loss
def test_a_token_that_both_rule_out_adds_nothing(case: str) -> None:
    teacher, student = logits(3, 8, 1), logits(3, 8, 2)
    expected = settings(case)(teacher[:, :7], student[:, :7])
    teacher[:, 7] = student[:, 7] = -math.inf
    torch.testing.assert_close(settings(case)(teacher, student), expected, rtol=1e-6, atol=1e-7)
    assert torch.isfinite(gradient(case, teacher, student)).all()


@every_loss
@pytest.mark.parametrize("poisoned", [0, 1])
def test_nan_is_seen_and_stays_in_its_row(case: str, poisoned: int) -> None:
    pair = [logits(3, 8, 1), logits(3, 8, 2)]
    pair[poisoned][1, 4] = math.nan
    assert settings(case)(*pair).isnan().tolist() == [False, True, False]


@every_loss
def test_no_tokens_give_no_values(case: str) -> None:
    assert settings(case)(torch.empty(0, 5), torch.empty(0, 5)).shape == (0,)
    assert gradient(case, torch.empty(0, 5), torch.empty(0, 5)).shape == (0, 5)


@every_loss
@pytest.mark.parametrize(("of_teacher", "of_student"), [(64, 72), (72, 64)])
def test_padded_vocabularies_are_compared_on_what_both_have(case: str, of_teacher: int, of_student: int) -> None:
    teacher, student = logits(6, of_teacher, 1), logits(6, of_student, 2)
    expected = settings(case)(teacher[:, :64], student[:, :64])
    torch.testing.assert_close(settings(case)(teacher, student), expected, rtol=0, atol=0)
    found = gradient(case, teacher, student)
    assert found[:, 64:].abs().sum() == 0
    assert found[:, :64].abs().sum() > 0


@every_loss
def test_half_precision_logits_are_compared_in_float32(case: str) -> None:
    teacher, student = logits(5, 40, 1).bfloat16(), logits(5, 40, 2).bfloat16()
    values = settings(case)(teacher, student)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, settings(case)(teacher.float(), student.float()), rtol=0, atol=0)


# ---- what is special to one ----


def test_forward_kl_is_not_symmetric() -> None:
    """The written-down value for p = (3/4, 1/4), q = (1/4, 3/4) against q = (1/2, 1/2)."""
    p, q = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    assert forward_kl(p, q).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert forward_kl(q, p).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-6)
    assert ReverseKL()(p, q).item() == forward_kl(q, p).item()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_of_forward_kl_is_t_times_the_difference_of_probabilities(temperature: float) -> None:
    """d/d student of T^2 KL at temperature T is T (q - p)."""
    teacher, student = logits(5, 31, 1), logits(5, 31, 2)
    p = torch.softmax(teacher.double() / temperature, dim=-1)
    q = torch.softmax(student.double() / temperature, dim=-1)
    found = gradient("forward-kl", teacher, student, temperature)
    torch.testing.assert_close(found.double(), temperature * (q - p), rtol=1e-5, atol=1e-6)


def test_the_limits_of_jsd() -> None:
    """D / beta goes to the forward KL and D / (1 - beta) to the reverse KL; in the middle it is symmetric."""
    teacher, student, near = logits(4, 9, 1).double(), logits(4, 9, 2).double(), 1e-7
    of_forward = GeneralisedJSD(beta=near)(teacher, student) / near
    torch.testing.assert_close(of_forward, forward_kl(teacher, student), rtol=1e-4, atol=0)
    of_reverse = GeneralisedJSD(beta=1 - near)(teacher, student) / near
    torch.testing.assert_close(of_reverse, ReverseKL()(teacher, student), rtol=1e-4, atol=0)
    jsd = GeneralisedJSD()
    torch.testing.assert_close(jsd(teacher, student), jsd(student, teacher))


def test_the_limit_of_skewed_kl_is_forward_kl() -> None:
    teacher, student = logits(4, 9, 1).double(), logits(4, 9, 2).double()
    found = SkewedKL(alpha=1e-9)(teacher, student)
    torch.testing.assert_close(found, forward_kl(teacher, student), rtol=1e-6, atol=0)


def test_bounds_are_reached_where_nothing_is_shared() -> None:
    teacher, student = torch.tensor([[1e3, 0.0]]), torch.tensor([[0.0, 1e3]])
    assert GeneralisedJSD()(teacher, student).item() == pytest.approx(math.log(2))
    assert SkewedKL(alpha=0.1)(teacher, student).item() == pytest.approx(math.log(10))
    assert TotalVariation()(teacher, student).item() == 1.0
    assert TotalVariation(temperature=2.0)(teacher, student).item() == 2.0


def test_lk_alpha_is_minus_the_log_of_one_less_total_variation() -> None:
    teacher, student = logits(5, 20, 1).double(), logits(5, 20, 2).double()
    torch.testing.assert_close(LKAlpha()(teacher, student), -(1 - TotalVariation()(teacher, student)).log())
    assert torch.autograd.gradcheck(LKAlpha(), (teacher, student.requires_grad_()))


def test_lk_alpha_has_a_gradient_where_total_variation_has_none() -> None:
    """Two tokens, of which each model rules one all but out: what is accepted is e^-100, which float32 has not."""
    teacher, student = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])
    assert LKAlpha()(teacher, student).item() == pytest.approx(100 - math.log(2), rel=1e-6)
    # The two shares of what is shared are equal: half of the student's probability should move from one to the other.
    assert gradient("lk-alpha", teacher, student)[0].tolist() == pytest.approx([-0.5, 0.5], rel=1e-5)
    assert gradient("total-variation", teacher, student).abs().max() < 1e-40


def test_lk_lambda_goes_from_kl_to_total_variation() -> None:
    teacher, student = logits(5, 20, 1).double(), logits(5, 20, 2).double()
    kls, variations = forward_kl(teacher, student), TotalVariation()(teacher, student)
    assert torch.equal(LKLambda(eta=0)(teacher, student), kls)
    torch.testing.assert_close(LKLambda(eta=1e9)(teacher, student), variations)
    share = torch.exp(-3 * (1 - variations))
    torch.testing.assert_close(LKLambda()(teacher, student), share * kls + (1 - share) * variations)


# ---- cross-entropy ----


@every_loss
@pytest.mark.parametrize(("of_teacher", "of_student"), [(20, 20), (17, 20), (20, 17)])
def test_the_mix_with_cross_entropy(case: str, of_teacher: int, of_student: int) -> None:
    teacher, student, targets = logits(6, of_teacher, 1), logits(6, of_student, 2), torch.tensor([0, 3, 16, 5, 5, 1])
    mix = cross_entropy_mix(settings(case, 2.0), 0.25)
    size = min(of_teacher, of_student)
    pairs = zip(student[:, :size].tolist(), targets, strict=True)
    own = torch.tensor([-log_softmax(row, 1.0)[target] for row, target in pairs], dtype=torch.float64)
    expected = 0.25 * own + 0.75 * naive(case, teacher, student, 2.0)
    torch.testing.assert_close(mix(teacher, student, targets).double(), expected, rtol=1e-5, atol=1e-6)


def test_no_share_of_cross_entropy_is_the_loss_alone() -> None:
    teacher, student, far = logits(3, 8, 1), logits(3, 8, 2), torch.tensor([99, 99, 99])
    assert torch.equal(cross_entropy_mix(forward_kl, 0)(teacher, student, far), forward_kl(teacher, student))


# ---- hidden states ----


def naive_mse(teacher: Logs, student: Logs) -> float:
    return sum((a - b) ** 2 for a, b in zip(teacher, student, strict=True)) / len(teacher)


def naive_cosine(teacher: Logs, student: Logs) -> float:
    product = sum(a * b for a, b in zip(teacher, student, strict=True))
    return 1 - product / math.sqrt(sum(a * a for a in teacher) * sum(b * b for b in student))


HIDDEN: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
    "mse": (HiddenMSE(), naive_mse),
    "cosine": (HiddenCosine(), naive_cosine),
}


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (9, 32), (0, 4)])
def test_hidden_losses_equal_their_definitions(kind: str, tokens: int, width: int) -> None:
    loss, definition = HIDDEN[kind]
    teacher, student = logits(tokens, width, 1), logits(tokens, width, 2)
    pairs = zip(teacher.tolist(), student.tolist(), strict=True)
    expected = torch.tensor([definition(*pair) for pair in pairs])
    torch.testing.assert_close(loss(teacher, student), expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(loss, (teacher.double(), student.double().requires_grad_()))


@pytest.mark.parametrize("kind", HIDDEN)
def test_hidden_losses_of_equal_states_are_zero(kind: str) -> None:
    loss, _ = HIDDEN[kind]
    same = logits(5, 16).bfloat16()
    student = same.clone().requires_grad_()
    values = loss(same, student)
    assert values.dtype == torch.float32
    assert values.tolist() == [0.0] * 5
    values.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_cosine_does_not_look_at_lengths() -> None:
    teacher, student = logits(5, 16, 1), logits(5, 16, 2)
    cosine = HiddenCosine()
    torch.testing.assert_close(cosine(3 * teacher, student), cosine(teacher, student))
    assert cosine(teacher, -teacher).tolist() == pytest.approx([2.0] * 5)


# ---- settings ----


@every_loss
def test_settings_pick_a_loss_by_kind(case: str) -> None:
    chosen = DistillSettings.model_validate({"loss": {**CASES[case][0], "temperature": 2.0}}).loss
    assert chosen == settings(case, 2.0)
    assert {name: getattr(chosen, name) for name in CASES[case][0]} == CASES[case][0]
    assert DistillSettings().loss == settings("forward-kl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": {"kind": "kl"}}, "forward-kl"),
        ({"loss": {"kind": "forward-kl", "temperature": 0}}, "greater than 0"),
        ({"loss": {"kind": "forward-kl", "temperature": math.nan}}, "temperature"),
        ({"loss": {"kind": "forward-kl", "margin": 1}}, "margin"),
        ({"loss": {"kind": "reverse-kl", "beta": 0.5}}, "beta"),
        ({"loss": {"kind": "jsd", "beta": 1.1}}, "beta"),
        ({"loss": {"kind": "skewed-kl", "alpha": 0}}, "alpha"),
        ({"loss": {"kind": "skewed-kl", "alpha": 1}}, "alpha"),
        ({"loss": {"kind": "lk-lambda", "eta": -1}}, "eta"),
        ({"cross_entropy": 1}, "cross_entropy"),
        ({"cross_entropy": -0.1}, "cross_entropy"),
        ({"hidden": {"kind": "l1"}}, "cosine"),
        ({"hidden": {"kind": "mse", "weight": 0}}, "weight"),
        ({"hidden": {"kind": "mse", "layers": 2}}, "layers"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillSettings.model_validate(fields)
