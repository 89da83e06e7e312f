"""Networks of transformers with our delta rule inside: the same function, and nothing else about them changes."""

import copy
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from comparing import TIME, batch, block_and_gradients, largest_difference, loss_and_gradients, off_by_a_hundredth
from naive import naive_delta_rule
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import tiny
from radistill.mixers.fast import swap
from radistill.mixers.fast.swap import is_swapped
from radistill.mixers.gdn.delta import install
from radistill.mixers.gdn.delta.install import SWAP as DELTA
from radistill.mixers.mamba2.ssd.install import SWAP as SSD
from radistill.models.cache_names import cache_argument

FAMILIES = ["qwen3_5_text", "qwen3_next", "granitemoehybrid"]
FUNCTIONS = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")

# Where each part is looked up.
PARTS = {"gated_delta_rule": install, "causal_convolution": swap, "norm_then_gate": install}

# Their gradients come through log-decays, and transformers' path loses digits of them: where a decay is strong it takes
# small differences of large sums.
DECAYS = ("A_log", "dt_bias", "in_proj_a.weight", "in_proj_ba.weight")


def without_decays(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found.items() if not name.endswith(DECAYS)}


def hybrid(**settings: Any) -> PreTrainedModel:
    network = tiny.build("qwen3_5_text", **settings)
    DELTA.use(network)
    return network


def block_of(network: PreTrainedModel) -> Any:
    return next(module for module in network.modules() if hasattr(module, "A_log"))


def namespace_of(network: PreTrainedModel) -> ModuleType:
    return sys.modules[type(block_of(network)).__module__]


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next"])
def test_the_slots_are_where_this_transformers_looks_them_up(family: str) -> None:
    network = tiny.build(family)
    DELTA.use(network)
    for name in FUNCTIONS:
        assert is_swapped(getattr(namespace_of(network), name)), f"transformers has no {name}, or another one"
    assert "forward" in vars(block_of(network).norm)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers(family: str, training: bool) -> None:
    network = tiny.build(family).train(training)
    DELTA.use(network)
    with DELTA.without(network):
        expected = loss_and_gradients(network)
    found = loss_and_gradients(network)
    assert largest_difference({"logits": found["logits"]}, {"logits": expected["logits"]}) < 1e-5
    # Random networks of this size magnify the rounding of a part some hundred times on the way to a gradient.
    assert largest_difference(without_decays(found), without_decays(expected)) < 5e-4
    assert largest_difference(found, expected) < 2e-3


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("padded", [True, False])
def test_a_block_and_its_gradients_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, key_heads: int, padded: bool
) -> None:
    # So few channels may all be near zero at some token, and a norm with a small eps would magnify their rounding.
    network = hybrid(linear_num_key_heads=key_heads, rms_norm_eps=0.1)
    with DELTA.without(network):
        expected = block_and_gradients(block_of(network), 32, padded)
    found = block_and_gradients(block_of(network), 32, padded)
    assert largest_difference(without_decays(found), without_decays(expected)) < 1e-5
    monkeypatch.setattr(install, "gated_delta_rule", naive_delta_rule)
    exact = block_and_gradients(block_of(network).double(), 32, padded)
    assert largest_difference(found, exact) < 1e-5
    for name in exact.keys() - without_decays(exact).keys():
        assert (found[name] - exact[name]).norm() <= (expected[name] - exact[name]).norm()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_in_use(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The negative control: a function of ours that is off by a hundredth shows."""
    network = hybrid()
    expected = loss_and_gradients(network)
    off_by_a_hundredth(monkeypatch, PARTS[part], part)
    assert largest_difference(loss_and_gradients(network), expected) > 1e-3


@torch.no_grad()
def test_reading_a_prompt_fills_the_cache_as_transformers_does() -> None:
    network = hybrid()
    given, ours, theirs = batch(), DynamicCache(config=network.config), DynamicCache(config=network.config)
    network(**given, **{cache_argument(network): ours}, use_cache=True)
    with DELTA.without(network):
        network(**given, **{cache_argument(network): theirs}, use_cache=True)
    compared = 0
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        for table in ("conv_states", "recurrent_states"):
            for key, state in getattr(other, table, {}).items():
                found = getattr(one, table)[key]
                assert found.dtype == state.dtype
                assert float((found - state).norm() / state.norm()) < 1e-5
                compared += 1
    assert compared == 4  # two layers, two tables


@pytest.mark.parametrize("first", [1, 3, 64, 100])
@torch.no_grad()
def test_a_prompt_and_then_tokens_are_one_forward(first: int) -> None:
    """In one piece, as two prompts in a row, in pieces of 40, and token by token."""
    network = hybrid().double()
    ids = batch()["input_ids"]
    expected = network(input_ids=ids, use_cache=False).logits
    pieces = ([first, TIME], [first, *range(first + 40, TIME, 40), TIME], [first, *range(first + 1, first + 6)])
    for ends in pieces:
        cache, start = DynamicCache(config=network.config), 0
        for end in ends:
            logits = network(input_ids=ids[:, start:end], **{cache_argument(network): cache}, use_cache=True).logits
            torch.testing.assert_close(logits, expected[:, start:end], rtol=1e-6, atol=1e-7)
            start = end


def test_copies_and_pickles_are_as_fast_and_independent() -> None:
    network = hybrid()
    expected = loss_and_gradients(network)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        norm = block_of(twin).norm
        assert norm.forward.args[0] is norm
        assert largest_difference(loss_and_gradients(twin), expected) == 0
        with torch.no_grad():
            norm.weight.mul_(2)
        assert largest_difference(loss_and_gradients(network), expected) == 0


def test_twice_is_once_and_undone_is_undone() -> None:
    network = tiny.build("qwen3_5_text")
    keys = network.state_dict().keys()
    DELTA.use(network)
    namespace = namespace_of(network)
    swapped = [getattr(namespace, name) for name in FUNCTIONS]
    DELTA.use(network)
    assert [getattr(namespace, name) for name in FUNCTIONS] == swapped
    assert network.state_dict().keys() == keys
    with DELTA.without(network):
        assert not any(is_swapped(getattr(namespace, name)) for name in FUNCTIONS)
        assert "forward" not in vars(block_of(network).norm)
    assert [getattr(namespace, name) for name in FUNCTIONS] == swapped
    assert "forward" in vars(block_of(network).norm)


def test_two_swaps_share_the_convolution() -> None:
    """Mamba-2's swap finds the same convolution in these modules; either may be undone inside the other."""
    network = hybrid()
    namespace = namespace_of(network)
    swapped = [getattr(namespace, name) for name in FUNCTIONS]
    SSD.use(network)
    assert [getattr(namespace, name) for name in FUNCTIONS] == swapped
    with SSD.without(network), DELTA.without(network):
        assert not any(is_swapped(getattr(namespace, name)) for name in FUNCTIONS)
    assert [getattr(namespace, name) for name in FUNCTIONS] == swapped


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("ours was called")

    for part, place in PARTS.items():
        monkeypatch.setattr(place, part, forbidden)


@pytest.mark.slow
def test_what_is_not_ours_goes_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = hybrid()
    forbid(monkeypatch)
    ids = batch()["input_ids"][:1, :9]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(input_ids=ids, use_cache=False).logits.isfinite().all()
    compiled = torch.compile(network, backend="eager")
    assert compiled(input_ids=ids, use_cache=False).logits.isfinite().all()
    with pytest.raises(AssertionError, match="ours was called"):
        network(input_ids=ids, use_cache=False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_devices_and_packed_sequences_go_to_the_original(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As on a GPU, where transformers takes flash-linear-attention's rule if that is installed."""
    network = hybrid()
    forbid(monkeypatch)
    swapped = getattr(namespace_of(network), name)
    calls = []

    def original(*arguments: Tensor, **settings: Any) -> tuple[Tensor, ...]:
        calls.append((arguments, settings))
        return arguments

    ours: Callable[..., Any] = swapped.func
    for device, packed in (("meta", {}), ("cpu", {"cu_seqlens": torch.tensor([0, 4, 9])})):
        given = [torch.ones(1, 9, 2, 4, device=device) for _ in range(5 if "rule" in name else 2)]
        settings = {"activation": "silu"} if "conv" in name else {"use_qk_l2norm_in_kernel": True}
        assert ours(original, *given, **settings, **packed)[0] is given[0]
        assert {**settings, **packed}.items() <= calls[-1][1].items()
    assert len(calls) == 2


def test_half_precision_is_that_of_transformers() -> None:
    network = hybrid().to(torch.bfloat16)
    ids = batch()["input_ids"]
    with torch.no_grad():
        found = network(input_ids=ids, use_cache=False).logits
        with DELTA.without(network):
            expected = network(input_ids=ids, use_cache=False).logits
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        exact = hybrid()(input_ids=ids, use_cache=False).logits
    # As far apart as bfloat16 itself is from float32 here.
    theirs = float((expected - exact).norm() / exact.norm())
    assert float((found - expected).norm() / expected.norm()) < 1.5 * theirs
