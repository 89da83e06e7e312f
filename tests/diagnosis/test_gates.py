"""Gates: the projection, the hooks and their gradients."""

import itertools

import pytest
import torch

import tiny
from radistill.diagnosis.objectives import objective_from
from radistill.diagnosis.selectors.gates import gated, project
from radistill.diagnosis.trials import Trials
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.masks import ComponentMask, masked

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", tuple(range(30, 42)), 1)]


@pytest.mark.parametrize("total", [0, 1, 2.5, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_projection_is_the_closest_point_of_the_budget(seed: int, total: float) -> None:
    point = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    found = project(point, total)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.sum().item() == pytest.approx(total, abs=1e-9)
    distance = (found - point).square().sum()
    steps = torch.linspace(0, 1, 11, dtype=torch.float64).tolist()
    for first in itertools.product(steps, repeat=3):
        other = torch.tensor([*first, total - sum(first)], dtype=torch.float64)
        if 0 <= other[-1] <= 1:
            assert (other - point).square().sum() >= distance - 1e-9


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid", "gemma2"])
def test_gates_of_one_change_nothing_and_gates_of_zero_are_a_mask(family: str) -> None:
    model = tiny.model(family)
    layers = model.anatomy.attention_layers
    batch = collate(DOCUMENTS, 0)
    with torch.no_grad():
        full = response_logits(model.network, batch).logits
        with gated(model, layers, torch.ones(len(layers))):
            assert torch.equal(response_logits(model.network, batch).logits, full)
        with masked(model, ComponentMask.attention(layers)):
            without = response_logits(model.network, batch).logits
        with gated(model, layers, torch.zeros(len(layers))):
            torch.testing.assert_close(response_logits(model.network, batch).logits, without)
        assert torch.equal(response_logits(model.network, batch).logits, full)


def test_only_gates_get_a_gradient_and_it_is_right() -> None:
    model = tiny.model("llama")
    model.network.double()
    trials = Trials(model, DOCUMENTS, objective_from({"name": "kl"}))
    layers = model.anatomy.attention_layers
    gates = torch.tensor([0.9, 0.4, 0.7, 0.2], dtype=torch.float64, requires_grad=True)
    frozen = next(iter(model.network.parameters()))
    frozen.requires_grad_(False)
    with gated(model, layers, gates):
        trials.differentiate()
    assert gates.grad is not None
    for index in range(len(layers)):
        values = []
        for step in (-1e-2, 1e-2):
            moved = gates.detach().clone()
            moved[index] += step
            with gated(model, layers, moved.requires_grad_()):
                values.append(trials.differentiate())
        assert gates.grad[index].item() == pytest.approx((values[1] - values[0]) / 2e-2, rel=1e-2)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert [parameter.requires_grad for parameter in model.network.parameters()].count(False) == 1


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny.model("llama")
    with pytest.raises(ZeroDivisionError), gated(model, [0, 1], torch.ones(2)):
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(module._forward_hooks for module in model.network.modules())
