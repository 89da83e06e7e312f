"""Muon, held against torch's own and against singular values."""

import pytest
import torch
from torch import Tensor, nn

from radistill.distillation.muon import Muon, orthogonal

SHAPES = [(8, 8), (24, 8), (8, 24), (1, 8), (8, 1), (1, 1), (233, 57)]


def matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_an_update_is_that_of_torch(shape: tuple[int, int], scale: float) -> None:
    found = []
    for kind in (Muon, torch.optim.Muon):
        weight = nn.Parameter(matrix(*shape, seed=1))
        optimiser = kind([weight], lr=0.05, weight_decay=0.1)
        for step in range(4):
            weight.grad = scale * matrix(*shape, seed=2 + step)
            optimiser.step()
        found.append(weight.detach())
    # torch computes in bfloat16, which has three digits.
    moved = (found[1] - matrix(*shape, seed=1)).norm()
    assert (found[0] - found[1]).norm() < 0.02 * moved


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_the_iteration_in_float64(shape: tuple[int, int]) -> None:
    start = matrix(*shape, seed=3, dtype=torch.float64)
    u, s, v = torch.linalg.svd(start, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.min() > 0.6
    assert s.max() < 1.3
    found = orthogonal(start.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), u @ torch.diag(s) @ v, atol=2e-5, rtol=0)


def test_a_rank_that_is_missing_stays_missing() -> None:
    low = matrix(12, 2, seed=4) @ matrix(2, 9, seed=5)
    values = torch.linalg.svdvals(orthogonal(low))
    assert values[:2].min() > 0.6
    assert values[2:].max() < 1e-2


def test_no_gradient_no_step_and_zero_gradient_only_decay() -> None:
    still, fading = nn.Parameter(matrix(4, 4)), nn.Parameter(matrix(4, 4))
    fading.grad = torch.zeros(4, 4)
    Muon([still, fading], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, matrix(4, 4))
    torch.testing.assert_close(fading.detach(), 0.95 * matrix(4, 4))


def test_bfloat16_weights_stay_bfloat16() -> None:
    weight = nn.Parameter(matrix(6, 4, dtype=torch.bfloat16))
    weight.grad = matrix(6, 4, seed=1, dtype=torch.bfloat16)
    Muon([weight], lr=0.05).step()
    assert weight.dtype == torch.bfloat16
    assert weight.isfinite().all()


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
