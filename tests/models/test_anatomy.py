"""Anatomy of every architecture that we know, on tiny random models."""

import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GraniteMoeHybridConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3_5Config

import tiny
from radistill.errors import RadistillError
from radistill.models.anatomy import Component, anatomy_of
from radistill.models.architectures import ARCHITECTURES
from radistill.models.cache_names import cache_of

ALL = [*tiny.FAMILIES, *tiny.REFUSED]
HYBRIDS = {kind for kind, entry in ARCHITECTURES.items() if entry.ssm}
# Written out once more: where the weights of components and embeddings are.
_PARTS = {"self_attn", "mamba", "linear_attn", "conv", "mixer", "mlp", "feed_forward", "block_sparse_moe", "shared_mlp"}
_PARTS |= {"experts", "embed_tokens", "embeddings", "lm_head"}


def test_a_tiny_model_of_every_architecture_is_tested() -> None:
    texts = {tiny.seeing(kind).anatomy.model_type for kind in tiny.SEEING}  # of models that read images
    assert {kind for kind, _ in (tiny.FAMILIES | tiny.REFUSED).values()} | texts == set(ARCHITECTURES)


def test_the_documentation_lists_every_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    table = page.partition("| model type |")[2].partition("\n\n")[0]
    assert {kind for row in table.splitlines() for kind in re.findall(r"`(\w+)`", row.split(" | ")[0])} == set(
        ARCHITECTURES
    )


@pytest.mark.parametrize("family", ALL)
def test_parameters_add_up(family: str) -> None:
    network = tiny.build(family, layers=3)
    counts = anatomy_of(network).parameters(network)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in network.parameters())
    assert list(counts) == ["attention", "ssm", "mlp", "embedding", "other"]
    assert counts["attention"] > 0
    assert counts["mlp"] > 0
    tied = network.config.tie_word_embeddings
    assert counts["embedding"] == tiny.VOCAB_SIZE * 32 * (1 if tied else 2)
    others = [p.numel() for name, p in network.named_parameters() if not _PARTS & set(name.split("."))]
    assert counts["other"] == sum(others)


def test_parameters_by_hand() -> None:
    network = tiny.build("llama", layers=2)
    # hidden 32, 4 heads and 2 KV heads of size 8, MLP 64: q and o 32x32, k and v 32x16; gate, up and down 32x64.
    attention, mlp = 2 * (2 * 32 * 32 + 2 * 32 * 16), 2 * 3 * 32 * 64
    expected = {"attention": attention, "ssm": 0, "mlp": mlp, "embedding": 2 * tiny.VOCAB_SIZE * 32, "other": 5 * 32}
    assert anatomy_of(network).parameters(network) == expected


@pytest.mark.parametrize("family", ALL)
def test_modules_are_found(family: str) -> None:
    network = tiny.build(family, layers=3)
    anatomy = anatomy_of(network)
    assert len(anatomy.layers(network)) == 3
    for layer in range(3):
        attention = anatomy.modules(network, layer, Component.ATTENTION)
        ssm = anatomy.modules(network, layer, Component.SSM)
        mlp = anatomy.modules(network, layer, Component.MLP)
        assert len(attention) == (layer in anatomy.attention_layers)
        assert len(ssm) == (layer in anatomy.ssm_layers)
        mixers = attention + ssm
        if family == "nemotron_h":  # each layer is one part
            assert len(mixers) + len(mlp) == 1
            continue
        assert len(mixers) == (2 if family == "falcon_h1" or (family == "zamba2" and attention) else 1)
        assert anatomy.mixer(network, layer) is mixers[0]
        if family == "granitemoehybrid-experts":
            assert [type(module).__name__[-3:] for module in mlp] == ["MoE", "MLP"]
        elif family == "gemma4_text-experts":
            assert [type(module).__name__[-7:] for module in mlp] == ["TextMLP", "Experts"]
        else:
            assert len(mlp) == (0 if family == "zamba2" and not attention else 1)


def test_layers_of_a_hybrid() -> None:
    network = tiny.build("granitemoehybrid", layers=5)
    anatomy = anatomy_of(network)
    assert anatomy.attention_layers == (1, 3)
    assert anatomy.ssm_layers == (0, 2, 4)
    assert type(anatomy.mixer(network, 2)).__name__ == "GraniteMoeHybridMambaLayer"
    assert type(anatomy.mixer(network, 3)).__name__ == "GraniteMoeHybridAttention"


def test_old_names_of_layer_types() -> None:
    config = GraniteMoeHybridConfig(num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"])
    config.layer_types = ["mamba", "attention", "mamba"]  # as versions before 5 left them
    assert anatomy_of(config).ssm_layers == (0, 2)


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gemma4_text",
        "granitemoehybrid",
        "granitemoehybrid-experts",
        *(f for f in tiny.REFUSED if f in HYBRIDS),
    ],
)
def test_bytes_are_those_of_the_cache(family: str) -> None:
    network = tiny.build(family, layers=5)
    anatomy = anatomy_of(network)
    with torch.no_grad():
        cache = cache_of(network(torch.arange(24).reshape(2, 12), use_cache=True))
    own = [layer for layer in anatomy.attention_layers if anatomy.cached[layer]]
    assert len(own) == len(anatomy.attention_layers) - (2 if family == "gemma4_text" else 0)
    keys_and_values = [cache.layers[layer].keys for layer in own] + [cache.layers[layer].values for layer in own]
    assert sum(tensor.numel() * 2 for tensor in keys_and_values) == 2 * 12 * anatomy.kv_bytes_per_token()
    states = [cache.layers[layer].conv_states[0] for layer in anatomy.ssm_layers]
    if family != "lfm2":  # which remembers no more than what its convolutions see
        states += [cache.layers[layer].recurrent_states[0] for layer in anatomy.ssm_layers]
    assert bool(states) == bool(anatomy.ssm_layers)
    assert sum(tensor.numel() * 4 for tensor in states) == 2 * anatomy.ssm_state_bytes()


def test_kv_bytes_by_hand() -> None:
    llama = anatomy_of(tiny.build("llama", layers=3))
    assert llama.kv_bytes_per_token() == 3 * 2 * 2 * 8 * 2
    assert llama.kv_bytes_per_token(bytes_per_number=4) == 3 * 2 * 2 * 8 * 4
    assert llama.kv_bytes(1000) == 1000 * llama.kv_bytes_per_token()
    assert llama.ssm_state_bytes() == 0
    hybrid = anatomy_of(tiny.build("granitemoehybrid", layers=3))
    assert hybrid.kv_bytes_per_token() == 1 * 2 * 2 * 8 * 2
    # Two layers: 4 heads x 8 x state 8, and a convolution of width 4 over 32 + 2 x 8 channels.
    assert hybrid.ssm_state_bytes() == 2 * (4 * 8 * 8 + 48 * 4) * 4


def test_a_window_bounds_the_cache() -> None:
    window = anatomy_of(tiny.build("qwen2-window", layers=3))  # layers 1 and 2 see 64 tokens
    assert window.sliding_layers == (1, 2)
    per_layer = 2 * 2 * 8 * 2
    assert window.kv_bytes(64) == 3 * 64 * per_layer
    assert window.kv_bytes(1000) == (1000 + 2 * 64) * per_layer


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=None),
        MistralConfig(sliding_window=4096, max_position_embeddings=4096),
        Qwen2Config(sliding_window=64, use_sliding_window=False),
        Qwen2Config(sliding_window=64, use_sliding_window=True, max_window_layers=32),
        LlamaConfig(sliding_window=64),
    ],
)
def test_windows_that_limit_nothing(config: MistralConfig | Qwen2Config | LlamaConfig) -> None:
    assert anatomy_of(config).sliding_window is None
    assert anatomy_of(config).sliding_layers == ()


def test_head_size_comes_from_the_config_if_it_is_there() -> None:
    assert anatomy_of(tiny.build("llama-head-size")).head_dim == 10
    assert anatomy_of(tiny.build("qwen2")).head_dim == 8


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RadistillError, match=r"model_type 'bert' is not .* we know \(llama, mistral, qwen2, granite"):
        anatomy_of(BertConfig())


def test_the_text_model_of_a_multimodal_one() -> None:
    text = tiny.build("qwen3_5_text", layers=4).config.to_dict()
    anatomy = anatomy_of(Qwen3_5Config(text_config=text))
    assert anatomy.model_type == "qwen3_5_text"
    assert (anatomy.attention_layers, anatomy.ssm_layers) == ((1, 3), (0, 2))


def test_broken_layer_types_are_refused() -> None:
    config = tiny.build("granitemoehybrid", layers=3).config
    config.layer_types = ["linear_attention", "full_attention", "rwkv"]
    with pytest.raises(RadistillError, match=r"layer_types\[2\] is 'rwkv'"):
        anatomy_of(config)
    config.layer_types = ["linear_attention"]
    with pytest.raises(RadistillError, match="layer_types has 1 entries, but num_hidden_layers is 3"):
        anatomy_of(config)


@pytest.mark.parametrize("family", ["phi3", "llama-biased"])
def test_projections_of_an_attention(family: str) -> None:
    """Fused or not, the projections compute the same, and their weights are the model's own."""
    network = tiny.build(family)
    anatomy = anatomy_of(network)
    attention = anatomy.projections(network, 1)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    apart = torch.cat([attention.q_proj(hidden), attention.k_proj(hidden), attention.v_proj(hidden)], dim=-1)
    own = network.model.layers[1].self_attn
    if family == "phi3":
        torch.testing.assert_close(apart, own.qkv_proj(hidden))
        assert attention.v_proj.weight.data_ptr() == own.qkv_proj.weight[48:].data_ptr()
        assert attention.q_proj.bias is None
    else:
        assert attention is own
    assert attention.o_proj is own.o_proj


def test_a_fused_state_dict_is_taken_apart_into_views() -> None:
    network = tiny.build("phi3")
    tensors = network.state_dict()
    found = anatomy_of(network).unfused(tensors)
    assert set(found) == set(tiny.build("llama").state_dict())
    fused = tensors["model.layers.2.self_attn.qkv_proj.weight"]
    assert torch.equal(found["model.layers.2.self_attn.q_proj.weight"], fused[:32])
    assert torch.equal(found["model.layers.2.self_attn.k_proj.weight"], fused[32:48])
    assert torch.equal(found["model.layers.2.self_attn.v_proj.weight"], fused[48:])
    fused = tensors["model.layers.2.mlp.gate_up_proj.weight"]
    assert torch.equal(found["model.layers.2.mlp.gate_proj.weight"], fused[:64])
    assert found["model.layers.2.mlp.up_proj.weight"].data_ptr() == fused[64:].data_ptr()


def test_a_model_that_reads_in_both_directions_is_refused() -> None:
    config = tiny.build("gemma3_text", use_bidirectional_attention=True).config
    with pytest.raises(RadistillError, match="use_bidirectional_attention is on"):
        anatomy_of(config)
