"""Gates: the shares, the hooks and their gradients."""

import pytest
import torch

import tiny
from radistill.diagnosis.objectives import objective_from
from radistill.diagnosis.selectors import Gates
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.selectors.gates import differentiate, gated, scaled_to, updated
from radistill.diagnosis.trials import Trials
from radistill.models.anatomy import Component
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.substitutes import Substitutes

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", tuple(range(30, 42)), 1)]


@pytest.mark.parametrize("total", [0.1, 1, 2.5, 3.9, 4])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_rescaled_to_the_budget_and_capped(seed: int, total: float) -> None:
    shares = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 + 1e-9
    found = scaled_to(shares, total)
    assert found.sum().item() == pytest.approx(total, abs=1e-9)
    assert found.max() <= 1
    below = found < 1 - 1e-12
    ratios = (found / shares)[below]
    if len(ratios):  # one factor for all that are not capped, and at least that for the capped ones
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
        assert (shares[~below] * ratios[0] >= 1 - 1e-9).all()


def test_a_step_takes_from_the_dear_and_spares_the_free() -> None:
    shares = torch.tensor([0.4, 0.4, 0.4, 1.0], dtype=torch.float64)
    costs = torch.tensor([0.0, 1.0, 2.0, 100.0], dtype=torch.float64)
    moved = updated(shares, costs, 0.5)
    # The average is that of the layers below 1: 1.0. The last one's change is capped.
    expected = shares * torch.tensor([0.0, -0.5, -1.0, -1.5], dtype=torch.float64).exp()
    torch.testing.assert_close(moved, expected)
    assert torch.equal(updated(shares, torch.zeros(4), 0.5), shares)
    assert torch.equal(updated(shares, torch.full((4,), float("nan")), 0.5), shares)


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
    gates = torch.tensor([0.9, 0.4, 0.7, 0.2], dtype=torch.float64)
    frozen = next(iter(model.network.parameters()))
    frozen.requires_grad_(False)
    _, gradient = differentiate(trials, layers, gates)
    for index in range(len(layers)):
        values = []
        for step in (-1e-2, 1e-2):
            moved = gates.clone()
            moved[index] += step
            values.append(differentiate(trials, layers, moved)[0])
        assert gradient[index].item() == pytest.approx((values[1] - values[0]) / 2e-2, rel=1e-2)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert [parameter.requires_grad for parameter in model.network.parameters()].count(False) == 1


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny.model("llama")
    with pytest.raises(ZeroDivisionError), gated(model, [0, 1], torch.ones(2)):
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(module._forward_hooks for module in model.network.modules())


def test_with_substitutes_a_gate_passes_from_attention_to_block() -> None:
    model = tiny.model("llama")
    layers = model.anatomy.attention_layers
    blocks = Substitutes({layer: torch.nn.Linear(32, 32) for layer in layers})
    batch = collate(DOCUMENTS, 0)
    with torch.no_grad():
        full = response_logits(model.network, batch).logits
        with gated(model, layers, torch.ones(len(layers)), blocks):
            torch.testing.assert_close(response_logits(model.network, batch).logits, full)
        with masked(model, ComponentMask.attention(layers), blocks):
            swapped = response_logits(model.network, batch).logits
        with gated(model, layers, torch.zeros(len(layers)), blocks):
            torch.testing.assert_close(response_logits(model.network, batch).logits, swapped)
    assert all(parameter.requires_grad for block in blocks.blocks.values() for parameter in block.parameters())


def test_gates_find_the_layers_that_do_nothing() -> None:
    model = tiny.model("llama", layers=6)
    for layer in (1, 4):
        model.anatomy.mixer(model.network, layer).o_proj.weight.data.zero_()
    trials = Trials(model, DOCUMENTS, objective_from({"name": "kl"}))
    found = Gates(steps=8).select(Problem(trials, 2))
    assert list(found.layers) == [1, 4]


def test_closed_gates_on_whole_layers_are_the_draft_without_them() -> None:
    model, both = tiny.model("llama", 4), (Component.ATTENTION, Component.MLP)
    ids = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(5))
    with gated(model, [1, 2], torch.zeros(2), components=both), torch.no_grad():
        found = model.network(input_ids=ids).logits
    with masked(model, ComponentMask.of([1, 2], both)), torch.no_grad():
        torch.testing.assert_close(found, model.network(input_ids=ids).logits)
