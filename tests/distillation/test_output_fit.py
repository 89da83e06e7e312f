"""The output projection in closed form, against least squares as anyone would write it."""

import torch
from torch import nn

from radistill.distillation.output_fit import RIDGE, solve_output


class Block(nn.Module):
    """Features by a fixed map and a nonlinearity, then the output projection."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 10)
        self.out_proj = nn.Linear(10, 6, bias=bias)

    def forward(self, hidden_states, attention_mask=None):
        return self.out_proj(torch.tanh(self.inner(hidden_states)))


def samples(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 7 - number :] = 0
        inputs, wanted = (torch.randn(2, 7, 6, generator=generator) for _ in range(2))
        wanted[mask == 0] = 1e6  # padding has no say
        found.append((inputs, wanted, mask))
    return found


def test_it_is_ridge_regression_on_the_tokens() -> None:
    for bias in (False, True):
        block = Block(bias)
        data = samples()
        features = torch.cat([torch.tanh(block.inner(x))[m.bool()] for x, _, m in data]).double().detach()
        wanted = torch.cat([y[m.bool()] for _, y, m in data]).double()
        before = None if block.out_proj.bias is None else block.out_proj.bias.clone()
        target = wanted if before is None else wanted - before.double()
        strength = (RIDGE * features.square().sum(0).mean()).sqrt()
        # Ridge regression is least squares with one more row of zeros for each feature.
        rows = torch.cat([features, strength * torch.eye(10, dtype=torch.float64)])
        expected = torch.linalg.lstsq(rows, torch.cat([target, torch.zeros(10, 6)])).solution.T
        assert solve_output(block, block.out_proj, data)
        torch.testing.assert_close(block.out_proj.weight.double(), expected, rtol=1e-4, atol=1e-5)
        if before is not None:
            assert torch.equal(block.out_proj.bias, before)


def test_no_other_projection_is_better() -> None:
    block, data = Block(), samples()

    def error() -> float:
        with torch.no_grad():
            return sum(((block(x) - y)[m.bool()]).square().sum().item() for x, y, m in data)

    solve_output(block, block.out_proj, data)
    best, weight = error(), block.out_proj.weight.detach().clone()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        block.out_proj.weight.data = weight + 0.05 * torch.randn(weight.shape, generator=generator)
        assert error() > best


def test_a_silent_block_is_left_alone() -> None:
    block = Block()
    block.inner.weight.data.zero_()
    block.inner.bias.data.zero_()
    before = block.out_proj.weight.clone()
    assert not solve_output(block, block.out_proj, samples())
    assert torch.equal(block.out_proj.weight, before)


def test_more_features_than_tokens_and_features_that_repeat() -> None:
    block = Block()
    block.inner.weight.data[5:] = block.inner.weight.data[:5]
    block.inner.bias.data[5:] = block.inner.bias.data[:5]
    few = [(x[:1, :3], y[:1, :3], m[:1, :3]) for x, y, m in samples(1)]
    assert solve_output(block, block.out_proj, few)
    assert block.out_proj.weight.isfinite().all()
