"""Masks switch exactly the named components off, and leave no trace."""

import pytest
import torch

import tiny
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.prefix import PrefixCache

FAMILIES = ["llama", "mistral", "qwen2", "granite", "granitemoehybrid"]


def batch_of(*lengths: int):
    generator = torch.Generator().manual_seed(3)
    documents = [
        Document(str(n), tuple(torch.randint(4, 60, (length,), generator=generator).tolist()), max(1, length // 2))
        for n, length in enumerate(lengths)
    ]
    return collate(documents, 0)


def logits(model, batch):
    with torch.no_grad():
        return model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_attention_equals_one_whose_output_projection_is_zero(family: str) -> None:
    model, broken = tiny.model(family), tiny.model(family)
    batch = batch_of(9, 5, 2)
    layer = model.anatomy.attention_layers[-1]
    for parameter in broken.anatomy.mixer(broken.network, layer).o_proj.parameters():
        torch.nn.init.zeros_(parameter)
    with masked(model, ComponentMask.attention([layer])):
        got = logits(model, batch)
    assert torch.equal(got, logits(broken, batch))
    assert not torch.equal(got, logits(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", list(Component))
def test_every_component_can_be_masked_where_it_exists(family: str, component: Component) -> None:
    model = tiny.model(family)
    batch = batch_of(7, 4)
    full = logits(model, batch)
    for layer in range(model.anatomy.num_layers):
        mask = ComponentMask(frozenset({(layer, component)}))
        if not model.anatomy.modules(model.network, layer, component):
            with pytest.raises(RadistillError, match=f"layer {layer} has no {component.value}"), masked(model, mask):
                pass
            continue
        with masked(model, mask):
            assert not torch.equal(logits(model, batch), full)
        assert torch.equal(logits(model, batch), full)


def test_a_mask_is_undone_after_an_error() -> None:
    model = tiny.model("llama")
    batch = batch_of(6)
    full = logits(model, batch)
    with pytest.raises(RuntimeError, match="on purpose"), masked(model, ComponentMask.attention([0, 1])):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(model, batch), full)
    assert all("forward" not in vars(module) for module in model.network.modules())


def test_masks_do_not_nest_silently() -> None:
    model = tiny.model("llama")
    mask = ComponentMask.attention([1])
    with masked(model, mask), pytest.raises(RuntimeError, match="do not nest"), masked(model, mask):
        pass


def test_a_layer_that_does_not_exist_is_named() -> None:
    model = tiny.model("llama")
    with pytest.raises(RadistillError, match="layer 99 does not exist"), masked(model, ComponentMask.attention([99])):
        pass


def test_an_empty_mask_changes_nothing() -> None:
    model = tiny.model("llama")
    batch = batch_of(6)
    full = logits(model, batch)
    with masked(model, ComponentMask.attention([])):
        assert torch.equal(logits(model, batch), full)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_that_starts_later_is_the_same_forward(family: str, every: int) -> None:
    model = tiny.model(family)
    batch = batch_of(9, 5, 2)
    cache = PrefixCache(model, batch, every=every)
    attention = model.anatomy.attention_layers
    masks = [ComponentMask.attention(a) for a in [[], [attention[0]], [attention[-1]], list(attention), attention[1:]]]

    def check() -> None:
        for mask in masks:
            with torch.no_grad():
                with masked(model, mask):
                    plain = response_logits(model.network, batch)
                assert torch.equal(cache.run(mask).logits(slice(None)), plain.logits)

    check()  # nothing is remembered
    for kept in masks:  # the full model first, then one masked model after another beside it
        cache.run(kept, keep=True)
        assert cache.keeps(kept)
        assert cache.keeps(masks[0])
        check()
    assert [cache.keeps(mask) for mask in masks] == [mask in (masks[0], masks[-1]) for mask in masks]
    assert all("forward" not in vars(module) for module in model.network.modules())


def test_response_logits_are_the_rows_that_predict_responses() -> None:
    model = tiny.model("llama")
    batch = batch_of(9, 5, 2)
    full = logits(model, batch)
    found = response_logits(model.network, batch)
    expected = [
        (row, time)
        for row in range(len(batch.input_ids))
        for time in range(1, batch.input_ids.shape[1])
        if batch.response_mask[row, time]
    ]
    assert found.rows.tolist() == [row for row, _ in expected]
    assert found.targets.tolist() == [batch.input_ids[row, time].item() for row, time in expected]
    for index, (row, time) in enumerate(expected):
        torch.testing.assert_close(found.logits[index], full[row, time - 1])
