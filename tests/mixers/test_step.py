"""One token from a stored state: functions against the recurrences, and networks that decode against transformers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile import HOSTILE, Given
from naive import naive_convolution, naive_delta_rule, naive_scan
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import tiny
from radistill.mixers import use_fast_paths, without_fast_paths
from radistill.mixers.fast.convolution import convolution_step
from radistill.mixers.gdn.delta import step as delta_step
from radistill.mixers.gdn.delta.step import rule_step
from radistill.mixers.mamba2.ssd import step as ssd_step
from radistill.mixers.mamba2.ssd.step import scan_step
from radistill.models.cache_names import cache_argument

BATCH, HEADS, TIME = 3, 4, 6
FAMILIES = ["granitemoehybrid", "qwen3_5_text", "qwen3_5_moe_text"]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def of_mamba2(groups: int = 2) -> Given:
    return {
        "x": normal(BATCH, TIME, HEADS, 5),
        "dt": normal(BATCH, TIME, HEADS),
        "A": -normal(HEADS).exp(),
        "B": normal(BATCH, TIME, groups, 6),
        "C": normal(BATCH, TIME, groups, 6) + 1,
        "D": normal(HEADS),
        "dt_bias": normal(HEADS) - 1,
        "initial_state": normal(BATCH, HEADS, 5, 6),
    }


def of_delta(groups: int = 2) -> Given:
    return {
        "q": normal(BATCH, TIME, groups, 6),
        "k": normal(BATCH, TIME, groups, 6) + 1,
        "v": normal(BATCH, TIME, HEADS, 5),
        "g": -normal(BATCH, TIME, HEADS).exp(),
        "beta": normal(BATCH, TIME, HEADS).sigmoid(),
        "initial_state": normal(BATCH, HEADS, 6, 5),
    }


def naive_rule(**given: Tensor) -> tuple[Tensor, Tensor]:
    return naive_delta_rule(**given, normalise=True)


def rule(state: Tensor, **given: Tensor) -> Tensor:
    return rule_step(state, **given, normalise=True)


KINDS: dict[str, tuple[Callable[..., Given], Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "mamba2": (of_mamba2, scan_step, naive_scan),
    "gdn": (of_delta, rule, naive_rule),
}


def largest_difference(kind: str, given: Given, dtype: torch.dtype) -> float:
    """Of the outputs of a few steps and the last state, relative to the largest number of each."""
    _, step, naive = KINDS[kind]
    expected = naive(**given)
    cast = {name: tensor.to(dtype) for name, tensor in given.items()}
    state = cast.pop("initial_state").clone()
    place, outputs = state.data_ptr(), []
    for t in range(TIME):
        outputs.append(step(state, **{name: each if each.dim() == 1 else each[:, t] for name, each in cast.items()}))
    assert state.data_ptr() == place
    pairs = zip((torch.stack(outputs, dim=1), state), expected, strict=True)
    return max(float((found.double() - real).abs().max() / real.abs().max().clamp(min=1.0)) for found, real in pairs)


@pytest.mark.parametrize("groups", [1, 2, HEADS])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_recurrence(kind: str, groups: int) -> None:
    given = KINDS[kind][0](groups)
    assert largest_difference(kind, given, torch.float64) < 1e-12
    assert largest_difference(kind, given, torch.float32) < 1e-5
    # The negative control: in half precision, it shows.
    assert largest_difference(kind, given, torch.bfloat16) > 1e-4


@pytest.mark.parametrize(("kind", "change"), HOSTILE)
def test_hostile_inputs(kind: str, change: Callable[[Given], None]) -> None:
    given = KINDS[kind][0]()
    change(given)
    assert largest_difference(kind, given, torch.float64) < 1e-12
    assert largest_difference(kind, given, torch.float32) < 1e-5


@pytest.mark.parametrize("with_bias", [True, False])
def test_steps_of_the_convolution(with_bias: bool) -> None:
    x, weight, bias = normal(2, 7, 9), normal(7, 4), normal(7) if with_bias else None
    expected = naive_convolution(x, weight, bias)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        memory = torch.zeros(2, 7, 4, dtype=dtype)
        rounded = [None if each is None else each.to(dtype) for each in (weight, bias)]
        steps = [convolution_step(x[..., t].to(dtype), memory, *rounded) for t in range(9)]
        found = torch.stack(steps, dim=-1)
        assert found.dtype == dtype
        assert float((found.double() - expected).abs().max()) < tolerance
        assert torch.equal(memory, x[..., -4:].to(dtype))


def hybrid(family: str, **settings: Any) -> PreTrainedModel:
    # So few channels may all be near zero at some token, and a norm with a small eps would magnify their rounding.
    network = tiny.build(family, **{"rms_norm_eps": 0.1} | settings)
    use_fast_paths(network)
    return network.eval()


def prompt(network: PreTrainedModel) -> tuple[DynamicCache, Tensor]:
    """A cache that has read a full row and two padded on the left, and the mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4], mask[2, :8] = 0, 0
    cache = DynamicCache(config=network.config)
    ids = torch.randint(4, 250, mask.shape, generator=generator)
    with torch.no_grad(), without_fast_paths(network):
        network(input_ids=ids, attention_mask=mask, use_cache=True, **{cache_argument(network): cache})
    return cache, mask


def decoded(network: PreTrainedModel, cache: DynamicCache, mask: Tensor, tokens: int = 4) -> dict[str, Tensor]:
    """Logits of some tokens more, and all states after them."""
    found = {}
    for token in range(tokens):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        ids = torch.tensor([[7], [8], [9]]) + token
        held = {cache_argument(network): cache}
        found[f"logits {token}"] = network(input_ids=ids, attention_mask=mask, use_cache=True, **held).logits
    for index, layer in enumerate(cache.layers):
        for table in ("conv_states", "recurrent_states"):
            found |= {f"{table} {index} {key}": state for key, state in getattr(layer, table, {}).items()}
    return found


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert [each.dtype for each in found.values()] == [each.dtype for each in expected.values()]
    return max(float((found[name] - each).norm() / each.norm()) for name, each in expected.items())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_that_of_transformers(family: str) -> None:
    # With multipliers of its own, and with none.
    for settings in ({}, {"residual_multiplier": 1.0} if family == "granitemoehybrid" else {}):
        network = hybrid(family, **settings)
        cache, mask = prompt(network)
        with without_fast_paths(network):
            expected = decoded(network, copy.deepcopy(cache), mask)
        found = decoded(network, cache, mask)
        assert any("recurrent" in name for name in found)
        assert furthest(found, expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_5_text"])
def test_half_precision_is_as_close_to_single_as_that_of_transformers(family: str) -> None:
    exact = hybrid(family)
    wanted = decoded(exact, *prompt(exact))
    network = hybrid(family).to(torch.bfloat16)
    cache, mask = prompt(network)
    with without_fast_paths(network):
        theirs = decoded(network, copy.deepcopy(cache), mask)
    found = decoded(network, cache, mask)
    for name, each in wanted.items():
        assert found[name].dtype == theirs[name].dtype
        allowed = 1.5 * float((theirs[name] - each).norm()) + 0.01 * float(each.norm())
        assert float((found[name] - each).norm()) < allowed


def watched(monkeypatch: pytest.MonkeyPatch, change: float = 0.0) -> list[str]:
    """The kinds of block whose steps are ours, as they are called; their outputs are off by `change`."""
    called: list[str] = []

    def noting(name: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def step(*given: Any, **settings: Any) -> Tensor:
            called.append(name)
            return real(*given, **settings) + change

        return step

    for name, (place, step) in {"mamba2": (ssd_step, "scan_step"), "gdn": (delta_step, "rule_step")}.items():
        monkeypatch.setattr(place, step, noting(name, getattr(place, step)))
    return called


@torch.no_grad()
@pytest.mark.parametrize(("family", "kind"), [("granitemoehybrid", "mamba2"), ("qwen3_5_text", "gdn")])
def test_steps_are_in_use(monkeypatch: pytest.MonkeyPatch, family: str, kind: str) -> None:
    """The negative control: what is off by a hundredth shows."""
    network = hybrid(family)
    cache, mask = prompt(network)
    expected = decoded(network, copy.deepcopy(cache), mask)
    called = watched(monkeypatch, change=0.01)
    assert furthest(decoded(network, cache, mask), expected) > 1e-4
    assert set(called) == {kind}


@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_5_text"])
def test_what_is_not_ours_goes_to_transformers(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Gradients, autocast, a cache that records what it may have to crop."""
    network = hybrid(family)
    cache, mask = prompt(network)
    called = watched(monkeypatch)
    assert decoded(network, copy.deepcopy(cache), mask, tokens=1)["logits 0"].requires_grad
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoded(network, copy.deepcopy(cache), mask, tokens=1)["logits 0"].isfinite().all()
    with torch.no_grad():
        recording = copy.deepcopy(cache)
        for layer in recording.layers:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()
        decoded(network, recording, mask, tokens=2)
        assert not called
        decoded(network, cache, mask, tokens=1)
    assert called
