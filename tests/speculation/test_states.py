"""Reading the tokens of a verification in one pass, against reading them one by one: logits, and states afterwards."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import tiny
from radistill.mixers import use_fast_paths, without_fast_paths
from radistill.models.architectures import ARCHITECTURES
from radistill.models.loading import Model
from radistill.speculation.caches import RowCache, read_prompts, read_tokens, verifying
from radistill.speculation.states import Copies, OnePass, stored

AT_ONCE = {
    "mamba2": ["granitemoehybrid", "bamba", "falcon_h1", "zamba2", "nemotron_h"],
    "gdn": ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"],
    "convolution": ["lfm2"],
}
FAMILIES = [family for families in AT_ONCE.values() for family in families]
ONE_BY_ONE = ["jamba", "kimi_linear"]
LIMITED = ["zamba2", "nemotron_h"]
"""transformers lets these take no step below 0.001 in a prompt, but lets them in decoding."""


def hybrid(family: str) -> Model:
    # So few channels may all be near zero at some token, and a norm with a small eps would magnify their rounding.
    model = tiny.model(family, **({"rms_norm_eps": 0.1} if family in AT_ONCE["gdn"] else {}))
    use_fast_paths(model.network)  # as `load` does
    return model


def tokens_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(4, 250, (length,), generator=generator).tolist() for length in lengths]


def verified(
    model: Model,
    prompts: Sequence[Sequence[int]],
    time: int,
    dropped: Sequence[int],
    *,
    one_by_one: bool = False,
    enlarge: float = 1.0,
) -> list[Tensor]:
    """Logits of a verification, all states after the roll-back, and logits of two tokens more."""
    cache = RowCache(model.network.config, len(prompts))
    if one_by_one:
        cache.stepped = set(model.anatomy.ssm_layers)
    read_prompts(model, cache, prompts)
    for layer in cache.layers:
        for table, key in stored(layer):
            table[key] *= enlarge
    found: list[Tensor] = []
    for width, drop in ((time, dropped), (2, [0] * len(prompts))):
        with verifying(model, cache) as history:
            logits = read_tokens(model, cache, torch.tensor(tokens_of(*[width] * len(prompts))))
        # A prompt of one token is read with the first draft; whether its step is limited depends on the path.
        first = found == [] and not any(prompts) and model.network.config.model_type in LIMITED
        kind = Copies if one_by_one or width == 1 or first else OnePass
        assert {type(states) for states in history.values()} == {kind}
        cache.roll_back(drop, history)
        found += [logits, *(table[key].clone() for layer in cache.layers for table, key in stored(layer))]
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        # 1e-4, but relative to the largest where numbers are large.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(10.0, float(other.abs().max())))


def test_every_hybrid_is_tested() -> None:
    families = [name for name in tiny.ARCHITECTURES if ARCHITECTURES[(tiny.FAMILIES | tiny.REFUSED)[name][0]].ssm]
    assert sorted(families) == sorted([*FAMILIES, *ONE_BY_ONE])


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_states_are_those_of_one_by_one(family: str) -> None:
    model = hybrid(family)
    for prompts, dropped in ((tokens_of(5, 2, 9, 1), [3, 0, 1, 4]), (tokens_of(0, 3), [2, 4]), (tokens_of(0), [1])):
        expected = verified(model, prompts, 5, dropped, one_by_one=True)
        assert_same(verified(model, prompts, 5, dropped), expected)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_5_text"])
def test_any_number_of_tokens(family: str) -> None:
    model = hybrid(family)
    for time in (1, 2, 3, 4, 8, 16, 17):
        for dropped in ([0, time - 1], [time // 2, 0]):
            expected = verified(model, tokens_of(4, 7), time, dropped, one_by_one=True)
            assert_same(verified(model, tokens_of(4, 7), time, dropped), expected)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_5_text"])
def test_half_precision(family: str) -> None:
    model = hybrid(family)
    model.network.to(torch.bfloat16)
    expected = verified(model, tokens_of(6, 3), 5, [2, 4], one_by_one=True)
    for one, other in zip(verified(model, tokens_of(6, 3), 5, [2, 4]), expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.03 * other.norm()


def with_steps(network: nn.Module, bias: float) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("dt_bias"):
            parameter.fill_(bias)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["granitemoehybrid", "zamba2", "nemotron_h", "qwen3_5_text"])
@pytest.mark.parametrize("bias", [-9.0, 30.0])
def test_small_and_large_steps_and_large_states(family: str, bias: float) -> None:
    model = hybrid(family)
    with_steps(model.network, bias)
    expected = verified(model, tokens_of(6, 3), 6, [2, 5], one_by_one=True, enlarge=100.0)
    assert_same(verified(model, tokens_of(6, 3), 6, [2, 5], enlarge=100.0), expected)


@torch.inference_mode()
@pytest.mark.parametrize("family", [*ONE_BY_ONE, "plain granitemoehybrid"])
def test_blocks_that_we_do_not_know_read_one_by_one(family: str) -> None:
    """A pass that turns out not to be ours has left the cache as it was."""
    model = hybrid(family.removeprefix("plain "))

    def found(one_by_one: bool) -> list[Tensor]:
        cache = RowCache(model.network.config, 2)
        cache.stepped = set(model.anatomy.ssm_layers) if one_by_one else set()
        read_prompts(model, cache, tokens_of(6, 3))
        with verifying(model, cache) as history:
            logits = read_tokens(model, cache, torch.tensor(tokens_of(4, 4)))
        assert {type(states) for states in history.values()} == {Copies}
        assert cache.stepped == set(model.anatomy.ssm_layers)
        cache.roll_back([1, 2], history)
        return [logits, *(table[key] for layer in cache.layers for table, key in stored(layer))]

    if family in ONE_BY_ONE:
        pairs = zip(found(False), found(True), strict=True)
    else:
        with without_fast_paths(model.network):
            pairs = zip(found(False), found(True), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
