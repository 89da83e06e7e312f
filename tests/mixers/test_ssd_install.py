"""Networks of transformers with our functions inside: the same function, and nothing else about them changes."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import TIME, batch, block_and_gradients, largest_difference, loss_and_gradients, off_by_a_hundredth
from transformers import DynamicCache, PreTrainedModel
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite

import tiny
from radistill.mixers.fast import swap
from radistill.mixers.fast.swap import is_swapped
from radistill.mixers.mamba2.ssd import install
from radistill.mixers.mamba2.ssd.install import SWAP as SSD
from radistill.models.cache_names import cache_argument
from radistill.models.loading import load

FAMILIES = ["granitemoehybrid", "bamba", "falcon_h1", "zamba2", "qwen3_next"]

# Where each part is looked up.
PARTS = {"chunked_scan": install, "causal_convolution": swap, "gated_norm": install}


def hybrid(family: str = "granitemoehybrid", **settings: Any) -> PreTrainedModel:
    return tiny.build(family, **{"mamba_n_groups": 2} | settings if family == "granitemoehybrid" else settings)


def test_the_slots_are_where_this_transformers_looks_them_up() -> None:
    network = hybrid()
    SSD.use(network)
    for name in ("causal_conv1d_fn", "mamba2_chunk_scan"):
        assert is_swapped(getattr(granite, name)), f"transformers has no {name}, or another one"
    assert all("forward" in vars(layer.mamba.norm) for layer in network.model.layers if layer.mamba is not None)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers(family: str, training: bool) -> None:
    network = hybrid(family).train(training)
    SSD.use(network)
    with SSD.without(network):
        expected = loss_and_gradients(network)
    found = loss_and_gradients(network)
    assert largest_difference({"logits": found["logits"]}, {"logits": expected["logits"]}) < 1e-5
    # Random networks of this size magnify the rounding of a part some forty times on the way to a gradient.
    assert largest_difference(found, expected) < 2e-4


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padded", [True, False])
def test_a_block_and_its_gradients_are_those_of_transformers(groups: int, padded: bool) -> None:
    # So few channels may all be near zero at some token, and a norm with a small eps would magnify their rounding.
    network = hybrid(mamba_n_groups=groups, rms_norm_eps=0.1)
    SSD.use(network)
    block = network.model.layers[0].mamba
    with SSD.without(network):
        expected = block_and_gradients(block, 32, padded)
    assert largest_difference(block_and_gradients(block, 32, padded), expected) < 1e-5


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_in_use(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The negative control: a function of ours that is off by a hundredth shows."""
    network = hybrid()
    SSD.use(network)
    expected = loss_and_gradients(network)
    off_by_a_hundredth(monkeypatch, PARTS[part], part)
    assert largest_difference(loss_and_gradients(network), expected) > 1e-3


@torch.no_grad()
def test_reading_a_prompt_fills_the_cache_as_transformers_does() -> None:
    network = hybrid()
    SSD.use(network)
    given, ours, theirs = batch(), DynamicCache(config=network.config), DynamicCache(config=network.config)
    network(**given, use_cache=True, **{cache_argument(network): ours})
    with SSD.without(network):
        network(**given, use_cache=True, **{cache_argument(network): theirs})
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        for table in ("conv_states", "recurrent_states"):
            for key, state in getattr(other, table, {}).items():
                found = getattr(one, table)[key]
                assert found.dtype == state.dtype
                torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [1, 3, 64, 100])
@torch.no_grad()
def test_a_prompt_and_then_tokens_are_one_forward(first: int) -> None:
    """In one piece, as two prompts in a row, and token by token."""
    network = hybrid()
    SSD.use(network)
    ids = batch()["input_ids"]
    expected = network(input_ids=ids, use_cache=False).logits
    for ends in ([first, TIME], [first, *range(first + 1, first + 6)]):
        cache, start = DynamicCache(config=network.config), 0
        for end in ends:
            held = {cache_argument(network): cache}
            logits = network(input_ids=ids[:, start:end], use_cache=True, **held).logits
            torch.testing.assert_close(logits, expected[:, start:end], rtol=1e-4, atol=1e-5)
            start = end


def test_copies_and_pickles_are_as_fast_and_independent() -> None:
    network = hybrid()
    SSD.use(network)
    expected = loss_and_gradients(network)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        norm = twin.model.layers[0].mamba.norm
        assert norm.forward.args[0] is norm
        assert largest_difference(loss_and_gradients(twin), expected) == 0
        with torch.no_grad():
            norm.weight.mul_(2)
        assert largest_difference(loss_and_gradients(network), expected) == 0


def test_twice_is_once_and_undone_is_undone() -> None:
    network = hybrid()
    keys = network.state_dict().keys()
    SSD.use(network)
    swapped = granite.mamba2_chunk_scan
    SSD.use(network)
    assert granite.mamba2_chunk_scan is swapped
    assert network.state_dict().keys() == keys
    assert type(network.model.layers[0].mamba) is granite.GraniteMoeHybridMambaLayer
    with SSD.without(network):
        assert not is_swapped(granite.mamba2_chunk_scan)
        assert "forward" not in vars(network.model.layers[0].mamba.norm)
    assert granite.mamba2_chunk_scan is swapped
    assert "forward" in vars(network.model.layers[0].mamba.norm)


def test_a_loaded_model_is_fast_and_saves_plain_files(tmp_path: Path) -> None:
    folder = tiny.save("granitemoehybrid", tmp_path / "model")
    model = load(folder)
    assert "forward" in vars(model.network.model.layers[0].mamba.norm)
    model.save(tmp_path / "again")
    plain = type(model.network).from_pretrained(tmp_path / "again")
    assert "forward" not in vars(plain.model.layers[0].mamba.norm)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor)


def test_what_is_not_ours_goes_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = hybrid().eval()
    SSD.use(network)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("ours was called")

    for part, place in PARTS.items():
        monkeypatch.setattr(place, part, forbidden)
    ids = batch()["input_ids"][:1, :9]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(input_ids=ids, use_cache=False).logits.isfinite().all()
    with pytest.raises(AssertionError, match="ours was called"):
        network(input_ids=ids, use_cache=False)
