"""Masks of every component of every family, against plain hooks that zero what the component adds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import tiny
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.architectures import ARCHITECTURES
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.prefix import PrefixCache
from radistill.speculation.presets import component_off, describe_mask, early_exit, parse_mask

HYBRIDS = [
    "granitemoehybrid",
    *(family for family, (kind, _) in tiny.REFUSED.items() if ARCHITECTURES[kind].ssm),
]
FAMILIES = [*tiny.ARCHITECTURES, "granitemoehybrid-experts", "gemma4_text-experts", "mistral-window"]
# Whose layers do something besides attention and MLP, which an early exit leaves in place.
_MORE = {"gemma4_text"}

# Written out once more, so that a slip in the anatomy is seen: where a layer keeps what it adds.
_MAMBA = {Component.ATTENTION: ["self_attn"], Component.SSM: ["mamba"], Component.MLP: ["feed_forward"]}
_PLAIN = {Component.ATTENTION: ["self_attn"], Component.SSM: ["linear_attn"], Component.MLP: ["mlp"]}
NAMES: dict[str, dict[Component, list[str]]] = {
    "bamba": _MAMBA,
    "falcon_h1": _MAMBA,
    "jamba": _MAMBA,
    "granitemoehybrid": {**_MAMBA, Component.MLP: ["block_sparse_moe", "shared_mlp"]},
    "zamba2": {
        Component.ATTENTION: ["shared_transformer.self_attn"],
        Component.SSM: ["mamba", "mamba_decoder.mamba"],
        Component.MLP: ["shared_transformer.feed_forward"],
    },
    "gemma4_text": {**_PLAIN, Component.MLP: ["mlp", "experts"]},
    "kimi_linear": {**_PLAIN, Component.SSM: ["self_attn"]},
    "lfm2": {**_MAMBA, Component.SSM: ["conv"]},
    "nemotron_h": {component: ["mixer"] for component in Component},
}


def batch(model: Model):
    generator = torch.Generator().manual_seed(3)
    documents = [
        Document(str(n), tuple(torch.randint(4, 60, (length,), generator=generator).tolist()), max(1, length // 2))
        for n, length in enumerate((9, 5, 2))
    ]
    return collate(documents, model.pad_token_id)


@contextmanager
def zeroed(model: Model, skipped: set[tuple[int, Component]]) -> Iterator[None]:
    """The naive reference: everything is computed, and what a component returns is multiplied by zero."""

    def zero(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return (output[0] * 0.0, *output[1:]) if isinstance(output, tuple) else output * 0.0

    layers = dict(model.network.named_modules())["model.layers"]
    handles = []
    for layer, component in skipped:
        inside = dict(layers[layer].named_modules())
        names = NAMES.get(model.anatomy.model_type, _PLAIN)[component]
        found = [inside[name] for name in names if name in inside]
        handles += [module.register_forward_hook(zero) for module in found]
        assert found
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def everything(model: Model) -> list[tuple[int, Component]]:
    return [
        (layer, component)
        for layer in range(model.anatomy.num_layers)
        for component in Component
        if model.anatomy.modules(model.network, layer, component)
    ]


def run(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return response_logits(model.network, batch(model)).logits


@pytest.mark.parametrize("family", tiny.usual_first(FAMILIES))
def test_every_mask_is_a_zeroed_output(family: str) -> None:
    model = tiny.model(family)
    parts = everything(model)
    random = torch.Generator().manual_seed(1)
    masks = [{part} for part in parts]
    masks += [{part for part in parts if part[1] is component} for component in {part[1] for part in parts}]
    masks += [{part for part in parts if torch.rand(1, generator=random) < 0.5} for _ in range(4)]
    masks += [set(early_exit(model, kept).skipped) for kept in (1, 3)]
    full = run(model)
    cache = PrefixCache(model, batch(model))
    for skipped in masks:
        mask = ComponentMask(frozenset(skipped))
        with zeroed(model, skipped):
            expected = run(model)
        with masked(model, mask):
            assert torch.equal(run(model), expected)
        with torch.no_grad():
            assert torch.equal(cache.run(mask).logits(slice(None)), expected)
        assert not torch.equal(expected, full) or not skipped
    assert torch.equal(run(model), full)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in _MORE])
def test_an_early_exit_is_a_shorter_model(family: str) -> None:
    model = tiny.model(family)
    with masked(model, early_exit(model, 2)):
        early = run(model)
    layers = model.anatomy.layers(model.network)
    model.network.model.layers = layers[:2]
    model.network.config.num_hidden_layers = 2
    torch.testing.assert_close(early, run(model))


@pytest.mark.parametrize("family", HYBRIDS)
def test_presets_are_what_their_names_say(family: str) -> None:
    model = tiny.model(family)
    assert describe_mask(component_off(model, Component.ATTENTION)) == describe_mask(
        ComponentMask.attention(model.anatomy.attention_layers)
    )
    assert {layer for layer, _ in component_off(model, Component.SSM).skipped} == set(model.anatomy.ssm_layers)
    # Of a layer with both, the other goes on.
    with masked(model, component_off(model, Component.ATTENTION)):
        without_attention = run(model)
    with masked(model, component_off(model, Component.SSM)):
        assert not torch.equal(run(model), without_attention)


def test_masks_from_text() -> None:
    model = tiny.model("granitemoehybrid")  # state space, attention, state space, attention
    attention, ssm, mlp = Component.ATTENTION, Component.SSM, Component.MLP
    for text, expected, shortest in [
        ("attention:1", {(1, attention)}, "attention:1"),
        ("attention:3,1  mlp:2", {(1, attention), (3, attention), (2, mlp)}, "attention:1,3 mlp:2"),
        ("mlp:0-2 mlp:1", {(0, mlp), (1, mlp), (2, mlp)}, "mlp:0-2"),
        ("exit:3", {(3, attention), (3, mlp)}, "attention:3 mlp:3"),
        ("layer-skip:33%", {(1, attention), (1, mlp)}, "attention:1 mlp:1"),
        ("layer-skip:50%", {(1, attention), (1, mlp), (2, ssm), (2, mlp)}, "attention:1 ssm:2 mlp:1-2"),
        ("exit:2 ssm-off", {(3, attention), (3, mlp), (2, mlp), (2, ssm), (0, ssm)}, "attention:3 ssm:0,2 mlp:2-3"),
    ]:
        mask = parse_mask(text, model)
        assert mask.skipped == expected
        assert describe_mask(mask) == shortest
        assert parse_mask(shortest, model) == mask
    assert describe_mask(ComponentMask()) == "nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mask: is empty; write attention:6,7"),
        ("attention", "'attention' means nothing; write"),
        ("attention:", "'attention:' means nothing"),
        ("atention:1", "'atention:1' means nothing"),
        ("attention:1,", "'attention:1,' has '' where a layer's number belongs"),
        ("attention:-1", "has '' where"),
        ("attention:1.5", "has '1.5' where"),
        ("attention:²", "has '²' where"),
        ("mlp:3-1", "'mlp:3-1' has the range 3-1, which runs backwards"),
        ("attention:99", "'attention:99': layer 99 does not exist; layers are 0 to 3"),
        ("mlp:0-99999999999", "layer 99999999999 does not exist"),
        ("attention:0", "mask: layer 0 has no attention"),
        ("exit:0", "exit:0 must leave after 1 to 3 of this model's 4 layers"),
        ("exit:4", "exit:4 must leave after 1 to 3"),
        ("exit:2,3", "has '2,3' where"),
        ("layer-skip:33", "'layer-skip:33' means nothing"),
        ("layer-skip:third%", "has 'third' where"),
        ("layer-skip:0%", "layer-skip:0% skips 0 layers; it must be 1 to 3 of 4"),
        ("layer-skip:99%", "layer-skip:99% skips 4 layers"),
    ],
)
def test_masks_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(RadistillError) as refused:
        parse_mask(text, tiny.model("granitemoehybrid"))
    assert message in str(refused.value)


def test_a_preset_of_what_a_model_does_not_have() -> None:
    with pytest.raises(RadistillError, match="ssm-off: no layer of this model has ssm"):
        parse_mask("ssm-off", tiny.model("llama"))
