"""The scan in chunks against the recurrence token by token: outputs, last state and every gradient."""

from collections.abc import Callable, Mapping

import pytest
import torch
from naive import naive_scan
from torch import Tensor

from radistill.mixers.mamba2.ssd import chunked
from radistill.mixers.mamba2.ssd.chunked import chunked_scan

Scan = Callable[..., tuple[Tensor, Tensor]]
HEADS, HEAD_DIM, STATE = 4, 5, 6

# The size of -A: steps are around 0.4, so a token lasts for hundreds of others, or not for one.
DECAYS = {"weak": 1e-3, "medium": 1.0, "strong": 30.0}


def inputs(
    time: int, *, batch: int = 2, groups: int = 2, decay: str = "medium", state: bool = True
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = {
        "x": normal(batch, time, HEADS, HEAD_DIM),
        "dt": normal(batch, time, HEADS),
        "A": -DECAYS[decay] * (0.1 + torch.rand(HEADS, generator=generator, dtype=torch.float64)),
        "B": normal(batch, time, groups, STATE),
        "C": normal(batch, time, groups, STATE),
        "D": normal(HEADS),
        "dt_bias": normal(HEADS) - 1,
    }
    return {**found, "initial_state": normal(batch, HEADS, HEAD_DIM, STATE)} if state else found


def results(scan: Scan, given: Mapping[str, Tensor], **settings: object) -> dict[str, Tensor]:
    """Output, last state and gradients of a random weighting of both."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    y, last = scan(**leaves, **settings)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in (y, last)]
    gradients = torch.autograd.grad([y, last], list(leaves.values()), weights)
    return {"y": y, "last": last, **dict(zip(leaves, gradients, strict=True))}


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Root mean square of each difference, over that of what is expected."""
    return {
        name: float((found[name].detach().double() - tensor.detach()).norm() / tensor.detach().norm().clamp(min=1e-30))
        for name, tensor in expected.items()
    }


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 500])
def test_the_scan_is_the_recurrence(time: int, decay: str) -> None:
    given = inputs(time, decay=decay)
    expected = results(naive_scan, given)
    assert max(differences(results(chunked_scan, given), expected).values()) < 1e-10
    single = results(chunked_scan, {name: tensor.float() for name, tensor in given.items()})
    assert all(tensor.dtype == torch.float32 for tensor in single.values())
    assert max(differences(single, expected).values()) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, HEADS])
@pytest.mark.parametrize("state", [True, False])
def test_groups_batches_and_states(batch: int, groups: int, state: bool) -> None:
    given = inputs(70, batch=batch, groups=groups, state=state)
    expected = results(naive_scan, given)
    assert max(differences(results(chunked_scan, given, chunk=16), expected).values()) < 1e-10


def test_a_scan_in_two_parts_is_one_scan() -> None:
    given = inputs(100)
    whole, last = chunked_scan(**given)
    first = {name: tensor[:, :37] if name in ("x", "dt", "B", "C") else tensor for name, tensor in given.items()}
    rest = {name: tensor[:, 37:] if name in ("x", "dt", "B", "C") else tensor for name, tensor in given.items()}
    y, state = chunked_scan(**first)
    z, end = chunked_scan(**{**rest, "initial_state": state})
    torch.testing.assert_close(torch.cat([y, z], dim=1), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("state", [True, False])
def test_without_gradients_it_goes_piece_by_piece(monkeypatch: pytest.MonkeyPatch, state: bool) -> None:
    given = inputs(500, state=state)
    expected = naive_scan(**given)
    for numbers in (1, 1 << 19):  # chunk by chunk, and all at once
        monkeypatch.setattr(chunked, "_PIECE", numbers)
        for found, exact in zip(chunked_scan(**given), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_a_limited_step_has_no_gradient_beyond_its_limits() -> None:
    given = inputs(40)
    limited = {"dt_limit": (0.2, 0.5)}
    expected = results(naive_scan, given, **limited)
    assert max(differences(results(chunked_scan, given, **limited), expected).values()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_that_vanish_or_explode_leave_finite_gradients(dtype: torch.dtype) -> None:
    given = inputs(130)
    given["dt"][:, ::3] = -2000.0
    given["dt"][:, 1::3] = -60.0
    given["dt"][:, 2::7] = 200.0
    found = results(chunked_scan, {name: tensor.to(dtype) for name, tensor in given.items()})
    assert all(tensor.isfinite().all() for tensor in found.values())
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    assert max(differences(found, results(naive_scan, given)).values()) < bound


def test_gradcheck() -> None:
    given = inputs(7, batch=1)
    names, leaves = list(given), [tensor.requires_grad_() for tensor in given.values()]
    assert torch.autograd.gradcheck(
        lambda *tensors: chunked_scan(**dict(zip(names, tensors, strict=True)), chunk=3), leaves
    )


def test_half_precision_is_computed_in_float32() -> None:
    given = {name: tensor.bfloat16() for name, tensor in inputs(65).items()}
    y, last = chunked_scan(**given)
    wide, wide_last = chunked_scan(**{name: tensor.float() for name, tensor in given.items()})
    assert torch.equal(y, wide)
    assert torch.equal(last, wide_last)


@pytest.mark.parametrize("broken", ["_carry", "_carry_back", "crossing", "sum_before"])
def test_a_broken_scan_is_noticed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The negative control: each part of the recurrence matters to what is compared above."""
    real = getattr(chunked, broken)

    def wrong(values: Tensor, *others: Tensor) -> object:
        return real(values.mul_(1.001), *others)

    monkeypatch.setattr(chunked, broken, wrong)
    given = inputs(130)
    assert max(differences(results(chunked_scan, given), results(naive_scan, given)).values()) > 1e-6
