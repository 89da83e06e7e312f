"""Convolution and gated norms against their definitions, forward and backward."""

import pytest
import torch
from naive import naive_convolution, naive_gated_norm, naive_norm_then_gate
from torch import Tensor

from radistill.mixers.fast import convolution
from radistill.mixers.fast.convolution import causal_convolution
from radistill.mixers.fast.gated_norm import gated_norm, norm_then_gate

GROUP_SIZES = [12, 4, 1]


def normal(*shape: int) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64
    ).requires_grad_()


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor], bound: float) -> None:
    """Values, and gradients of a random weighting, relative to their norms."""
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    pairs = [(found, expected)]
    gradients = [torch.autograd.grad(result, leaves, weights.to(result.dtype)) for result in (found, expected)]
    pairs += zip(*gradients, strict=True)
    for ours, theirs in pairs:
        assert float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-30)) < bound


@pytest.mark.parametrize("time", [1, 2, 3, 4, 65])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_the_convolution_is_its_definition(time: int, taps: int, biased: bool) -> None:
    x, weight, bias = normal(2, time, 7), normal(7, taps), normal(7) if biased else None
    leaves = [x, weight] if bias is None else [x, weight, bias]
    rows = x.transpose(1, 2)
    assert_same(causal_convolution(rows, weight, bias), naive_convolution(rows, weight, bias), leaves, 1e-12)
    # The layout must not matter, and float32 must be close.
    rows = rows.contiguous()
    assert_same(causal_convolution(rows, weight, bias), naive_convolution(rows, weight, bias), leaves, 1e-12)
    single = causal_convolution(rows.float(), weight.float(), None if bias is None else bias.float())
    assert single.dtype == torch.float32
    assert_same(single, naive_convolution(rows, weight, bias), leaves, 1e-5)
    few = (rows[:1, :2, :5], weight[:2], None if bias is None else bias[:2])
    assert torch.autograd.gradcheck(causal_convolution, few)


@pytest.mark.parametrize("time", [16, 17, 50])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_blocks_of_the_convolution_join(monkeypatch: pytest.MonkeyPatch, time: int, taps: int, biased: bool) -> None:
    monkeypatch.setattr(convolution, "_BLOCK", 0)  # blocks of 16 tokens
    x, weight, bias = normal(2, time, 7), normal(7, taps), normal(7) if biased else None
    leaves = [x, weight] if bias is None else [x, weight, bias]
    rows = x.transpose(1, 2)
    assert_same(causal_convolution(rows, weight, bias), naive_convolution(rows, weight, bias), leaves, 1e-12)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_the_gated_norm_is_its_definition(group_size: int) -> None:
    x, gate, weight = normal(2, 65, 12), normal(2, 65, 24), normal(12)
    gate = gate[..., :12]  # a part of a row, as a projection leaves it
    leaves = [x, gate, weight]
    expected = naive_gated_norm(x, gate, weight, 1e-5, group_size)
    assert_same(gated_norm(x, gate, weight, 1e-5, group_size), expected, leaves, 1e-12)
    single = gated_norm(x.float(), gate.float(), weight.float(), 1e-5, group_size)
    assert single.dtype == torch.float32
    assert_same(single, naive_gated_norm(x, gate, weight, 1e-5, group_size), leaves, 1e-5)
    few = [leaf[:1, :2] for leaf in leaves[:2]]
    assert torch.autograd.gradcheck(lambda *tensors: gated_norm(*tensors, 1e-5, group_size), (*few, weight))


def test_groups_of_the_norm_matter() -> None:
    """The negative control: one group and three are different functions."""
    x, gate, weight = normal(2, 5, 12), normal(2, 5, 12) + 1, normal(12)
    whole, grouped = (naive_gated_norm(x, gate, weight, 1e-5, size) for size in (12, 4))
    assert float((whole - grouped).detach().norm() / whole.detach().norm()) > 1e-2


def test_the_norm_of_nothing_is_nothing() -> None:
    """A block that starts at zero has this input; its gradient must be finite."""
    x, gate = (torch.zeros(1, 3, 8, requires_grad=True) for _ in range(2))
    y = gated_norm(x, gate, torch.ones(8), 1e-6, 8)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (x, gate))


def test_the_norm_before_the_gate_is_its_definition() -> None:
    x, gate, weight = normal(2, 65, 12), normal(2, 65, 24), normal(12)
    gate = gate[..., :12]
    leaves = [x, gate, weight]
    expected = naive_norm_then_gate(x, gate, weight, 1e-5)
    assert_same(norm_then_gate(x, gate, weight, 1e-5), expected, leaves, 1e-12)
    single = norm_then_gate(x.float(), gate.float(), weight.float(), 1e-5)
    assert single.dtype == torch.float32
    assert_same(single, naive_norm_then_gate(x, gate, weight, 1e-5), leaves, 1e-5)
    few = [leaf[:1, :2] for leaf in leaves[:2]]
    assert torch.autograd.gradcheck(lambda *tensors: norm_then_gate(*tensors, 1e-5), (*few, weight))
    other = naive_gated_norm(x, gate, weight, 1e-5, 12)  # the negative control: the order matters
    assert float((other - expected).detach().norm() / expected.detach().norm()) > 1e-2
