"""What a network computes with a swap of functions in place and without: a batch with padding, a loss, differences."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TIME = 150


def batch() -> dict[str, Tensor]:
    """A full row, one padded on the left and one on the right."""
    ids = torch.randint(4, 250, (3, TIME), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :70], mask[2, -20:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def loss_and_gradients(network: nn.Module) -> dict[str, Tensor]:
    given = batch()
    logits = network(**given, use_cache=False).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) * given["attention_mask"][..., None]
    network.zero_grad()
    (logits * weights).sum().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach() * given["attention_mask"][..., None], **gradients}


def block_and_gradients(block: nn.Module, width: int, padded: bool) -> dict[str, Tensor]:
    """Output of a block alone, and the gradients of its input and parameters, in the type of its parameters."""
    generator, dtype = torch.Generator().manual_seed(3), next(block.parameters()).dtype
    x = torch.randn(3, TIME, width, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(3, TIME, width, generator=generator).to(dtype)
    y = block(x, attention_mask=batch()["attention_mask"] if padded else None)
    leaves = {"x": x, **dict(block.named_parameters())}
    return {"y": y.detach(), **dict(zip(leaves, torch.autograd.grad(y, leaves.values(), weights), strict=True))}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - each).norm() / each.norm().clamp(min=1e-6)) for name, each in expected.items())


def off_by_a_hundredth(monkeypatch: pytest.MonkeyPatch, place: ModuleType, name: str) -> None:
    """Let the output of a function of ours be wrong by so much."""
    real = getattr(place, name)

    def wrong(x: Tensor, *others: Any, **settings: Any) -> Any:
        found = real(x, *others, **settings)
        return (found[0] + 0.01, found[1]) if isinstance(found, tuple) else found + 0.01

    monkeypatch.setattr(place, name, wrong)
