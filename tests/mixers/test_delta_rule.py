"""The delta rule in chunks against the recurrence token by token: outputs, last state and every gradient."""

from collections.abc import Callable, Mapping

import pytest
import torch
from naive import naive_delta_rule
from torch import Tensor

from radistill.mixers.gdn.delta import chunked
from radistill.mixers.gdn.delta.chunked import gated_delta_rule

Rule = Callable[..., tuple[Tensor, Tensor]]
HEADS, KEY_DIM, VALUE_DIM = 4, 6, 5
TIMES = [1, 2, 3, 63, 64, 65, 127, 200, 513]

# The size of -g: a token lasts for hundreds of others, for a few, or not for one.
DECAYS = {"weak": 1e-3, "medium": 0.3, "strong": 30.0}


def inputs(
    time: int, *, batch: int = 2, key_heads: int = 2, decay: str = "medium", state: bool = True
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    found = {
        "q": normal(batch, time, key_heads, KEY_DIM),
        "k": normal(batch, time, key_heads, KEY_DIM),
        "v": normal(batch, time, HEADS, VALUE_DIM),
        "g": -DECAYS[decay] * uniform(batch, time, HEADS),
        "beta": uniform(batch, time, HEADS),
    }
    return {**found, "initial_state": normal(batch, HEADS, KEY_DIM, VALUE_DIM)} if state else found


def results(rule: Rule, given: Mapping[str, Tensor], **settings: object) -> dict[str, Tensor]:
    """Output, last state and gradients of a random weighting of both."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    o, last = rule(**leaves, **settings)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in (o, last)]
    gradients = torch.autograd.grad([o, last], list(leaves.values()), weights)
    return {"o": o, "last": last, **dict(zip(leaves, gradients, strict=True))}


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Root mean square of each difference, over that of what is expected; of what is nearly nothing, as it is."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].detach().double() - tensor.detach()).norm() / max(float(tensor.detach().norm()), 1e-3))
        for name, tensor in expected.items()
    )


def single(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in given.items()}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("time", TIMES)
def test_the_rule_is_the_recurrence(time: int, decay: str) -> None:
    given = inputs(time, decay=decay)
    expected = results(naive_delta_rule, given, normalise=True)
    assert largest_difference(results(gated_delta_rule, given, normalise=True), expected) < 1e-10
    found = results(gated_delta_rule, single(given), normalise=True)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("key_heads", [1, 2, HEADS])
@pytest.mark.parametrize("state", [True, False])
def test_key_heads_batches_and_states(batch: int, key_heads: int, state: bool) -> None:
    given = inputs(70, batch=batch, key_heads=key_heads, state=state)
    expected = results(naive_delta_rule, given, normalise=True)
    assert largest_difference(results(gated_delta_rule, given, normalise=True, chunk=16), expected) < 1e-10


@pytest.mark.parametrize("time", [2, 65])
def test_keys_need_not_have_length_one(time: int) -> None:
    given = inputs(time)
    given["k"] *= 0.3  # longer ones make a state grow without bound
    expected = results(naive_delta_rule, given)
    assert largest_difference(results(gated_delta_rule, given), expected) < 1e-10
    assert largest_difference(results(naive_delta_rule, given, normalise=True), expected) > 1e-2


def no_decay(given: dict[str, Tensor]) -> None:
    given["g"].zero_()


def forget_at_once(given: dict[str, Tensor]) -> None:
    given["g"].fill_(-50)


def forget_now_and_then(given: dict[str, Tensor]) -> None:
    """Sums of log-decays grow to thousands, and differences of a thousandth between them count."""
    given["g"].fill_(-1e-3)
    given["g"][:, ::9] = -500.0


def learn_nothing(given: dict[str, Tensor]) -> None:
    given["beta"].zero_()


def learn_nothing_now_and_then(given: dict[str, Tensor]) -> None:
    given["beta"][:, ::3] = 0
    given["beta"][:, 1::3] = 1e-30


def overwrite(given: dict[str, Tensor]) -> None:
    given["beta"].fill_(1)


def one_key(given: dict[str, Tensor]) -> None:
    """Each token undoes the one before: all entries of the triangular system are 1."""
    given["k"].copy_(given["k"][:, :1].clone())
    given["beta"].fill_(1)
    given["g"].zero_()


def opposite_keys(given: dict[str, Tensor]) -> None:
    one_key(given)
    given["k"][:, ::2].neg_()


def no_keys(given: dict[str, Tensor]) -> None:
    given["k"].zero_()
    given["q"][:, ::2].zero_()


def large_state(given: dict[str, Tensor]) -> None:
    given["initial_state"] *= 1e6


def large_values(given: dict[str, Tensor]) -> None:
    given["v"] *= 1e6


HOSTILE = [
    no_decay,
    forget_at_once,
    forget_now_and_then,
    learn_nothing,
    learn_nothing_now_and_then,
    overwrite,
    one_key,
    opposite_keys,
    no_keys,
    large_state,
    large_values,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda change: change.__name__)
def test_hostile_inputs(hostile: Callable[[dict[str, Tensor]], None]) -> None:
    given = inputs(200)
    hostile(given)
    # Gradients of queries and keys of length 0 are a thousand times those of others, from the 1e-6 of their norms.
    expected = results(naive_delta_rule, given, normalise=True)
    assert all(tensor.isfinite().all() for tensor in expected.values())
    assert largest_difference(results(gated_delta_rule, given, normalise=True), expected) < 1e-9
    assert largest_difference(results(gated_delta_rule, single(given), normalise=True), expected) < 2e-5


def test_a_sequence_in_two_parts_is_one() -> None:
    given = inputs(100)
    whole, last = gated_delta_rule(**given)
    first = {name: tensor if name == "initial_state" else tensor[:, :37] for name, tensor in given.items()}
    rest = {name: tensor[:, 37:] for name, tensor in given.items() if name != "initial_state"}
    o, state = gated_delta_rule(**first)
    p, end = gated_delta_rule(**rest, initial_state=state)
    # Keys are longer than 1, so that numbers grow.
    assert largest_difference({"o": torch.cat([o, p], dim=1), "last": end}, {"o": whole, "last": last}) < 1e-9


@pytest.mark.parametrize("normalise", [True, False])
def test_gradcheck(normalise: bool) -> None:
    given = inputs(7, batch=1)
    names, leaves = list(given), [tensor.requires_grad_() for tensor in given.values()]
    assert torch.autograd.gradcheck(
        lambda *tensors: gated_delta_rule(**dict(zip(names, tensors, strict=True)), normalise=normalise, chunk=4),
        leaves,
    )


def test_nothing_given_is_overwritten() -> None:
    given = inputs(64, batch=1, key_heads=1)
    given = {name: tensor[:, :, :1] if tensor.dim() == 4 else tensor[..., :1] for name, tensor in given.items()}
    given["initial_state"] = inputs(64, batch=1)["initial_state"][:, :1]
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    o, last = gated_delta_rule(**leaves)
    weights = [torch.ones_like(o), torch.ones_like(last.mT).mT]
    once = torch.autograd.grad([o, last], list(leaves.values()), weights, retain_graph=True)
    twice = torch.autograd.grad([o, last], list(leaves.values()), weights)
    assert all(torch.equal(tensor, given[name]) for name, tensor in leaves.items())
    assert all(bool((weight == 1).all()) for weight in weights)
    assert all(torch.equal(one, other) for one, other in zip(once, twice, strict=True))


def test_half_precision_is_computed_in_float32() -> None:
    given = {name: tensor.bfloat16() for name, tensor in inputs(65).items()}
    o, last = gated_delta_rule(**given, normalise=True)
    wide, wide_last = gated_delta_rule(**single(given), normalise=True)
    assert torch.equal(o, wide)
    assert torch.equal(last, wide_last)


@pytest.mark.parametrize("size", [1, 2, 8, 16, 64])
def test_the_inverse_is_one(size: int) -> None:
    system = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1) / 4
    identity = torch.eye(size, dtype=torch.float64).expand_as(system)
    torch.testing.assert_close(chunked._inverse(system) @ (system + identity), identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", ["_inverse", "factors", "pairwise", "crossing", "sum_from", "sum_before"])
def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The negative control: each part of the rule matters to what is compared above."""
    real = getattr(chunked, broken)
    monkeypatch.setattr(chunked, broken, lambda *arguments: real(*arguments) * 1.001)
    given = inputs(130)
    expected = results(naive_delta_rule, given, normalise=True)
    assert largest_difference(results(gated_delta_rule, given, normalise=True), expected) > 1e-6
