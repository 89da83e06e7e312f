"""Every feature that stands in the way of the target is named."""

from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config

import tiny
from radistill.conversion.targets import TARGETS

in_the_way = TARGETS["granite-hybrid"].check

_GEMMA4 = [
    "norms of queries, keys and values (gemma4_text)",
    "norms after attention and MLP (gemma4_text)",
    "embeddings scaled by width (gemma4_text)",
    "two rotary embeddings (gemma4_text)",
    "a scale for each layer (gemma4_text)",
    "sliding-window attention (sliding_window=64)",
]
NAMED = {
    "llama-head-size": ["head size 10 does not equal hidden_size / num_attention_heads = 8"],
    "llama-mlp-bias": ["MLP bias (mlp_bias=True)"],
    "llama-gelu": ["activation gelu (hidden_act; only silu)"],
    "mistral-window": ["sliding-window attention (sliding_window=64)"],
    "qwen2-window": ["sliding-window attention (sliding_window=64)"],
    "gemma2": [
        "norms after attention and MLP (gemma2)",
        "norm weights stored minus one (gemma2)",
        "embeddings scaled by width (gemma2)",
        "sliding-window attention (sliding_window=64)",
        "attention soft-capping (attn_logit_softcapping=50)",
        "logit soft-capping (final_logit_softcapping=30)",
        "activation gelu_pytorch_tanh (hidden_activation; only silu)",
    ],
    "mixtral": ["mixture of experts (num_local_experts=4)"],
    "olmo2": ["QK-norm (olmo2)", "norms after attention and MLP instead of before (olmo2)"],
    "olmo3": [
        "QK-norm (olmo3)",
        "norms after attention and MLP instead of before (olmo3)",
        "sliding-window attention (sliding_window=64)",
    ],
    "phi3-window": ["sliding-window attention (sliding_window=64)"],
    "phi3-partial": ["partial rotary embedding (partial_rotary_factor=0.5)"],
    "gemma3_text": [
        "QK-norm (gemma3_text)",
        "norms after attention and MLP (gemma3_text)",
        "norm weights stored minus one (gemma3_text)",
        "embeddings scaled by width (gemma3_text)",
        "two rotary embeddings (gemma3_text)",
        "sliding-window attention (sliding_window=64)",
        "activation gelu_pytorch_tanh (hidden_activation; only silu)",
    ],
    "gemma4_text": [
        *_GEMMA4,
        "keys shared between layers (num_kv_shared_layers=2)",
        "embeddings for each layer (hidden_size_per_layer_input=8)",
        "activation gelu_pytorch_tanh (hidden_activation; only silu)",
    ],
    "gemma4_text-experts": [
        *_GEMMA4,
        "mixture of experts (num_experts=4)",
        "activation gelu_pytorch_tanh (hidden_activation; only silu)",
    ],
    "cohere2": [
        "attention and MLP side by side (cohere2)",
        "LayerNorm instead of RMS norm (cohere2)",
        "rotary embedding of neighbouring channels (cohere2)",
        "no rotary embedding in layers without a window (cohere2)",
        "sliding-window attention (sliding_window=64)",
    ],
    "glm": [
        "rotary embedding of neighbouring channels (glm)",
        "partial rotary embedding (partial_rotary_factor=0.5)",
    ],
    "glm4": [
        "norms after attention and MLP (glm4)",
        "rotary embedding of neighbouring channels (glm4)",
        "partial rotary embedding (partial_rotary_factor=0.5)",
    ],
    "ministral-window": ["sliding-window attention (sliding_window=64)"],
    "ministral3": ["queries scaled by their position (ministral3)"],
    "qwen2_moe": ["mixture of experts (num_experts=4)"],
    "qwen3": ["QK-norm (qwen3)"],
    "qwen3-tied": ["QK-norm (qwen3)", "head size 12 does not equal hidden_size / num_attention_heads = 8"],
    "qwen3-biased": ["QK-norm (qwen3)"],
    "qwen3_moe": ["QK-norm (qwen3_moe)", "mixture of experts (num_local_experts=4)"],
    "qwen3_moe-shares": ["QK-norm (qwen3_moe)", "mixture of experts (num_local_experts=4)"],
    "smollm3": ["layers without rotary embedding (no_rope_layers, at 3)"],
    "bamba": ["a hybrid of another kind (bamba)", "partial rotary embedding (partial_rotary_factor=0.5)"],
    "falcon_h1": ["a hybrid of another kind (falcon_h1)", "attention and state space in one layer (falcon_h1)"],
    "jamba": [
        "a hybrid of another kind (jamba)",
        "Mamba-1 blocks (jamba)",
        "mixture of experts (num_local_experts=4)",
    ],
    "kimi_linear": [
        "a hybrid of another kind (kimi_linear)",
        "Kimi delta attention (kimi_linear)",
        "multi-head latent attention (kimi_linear)",
        "no rotary embedding (kimi_linear)",
        "mixture of experts (num_local_experts=4)",
        "head size 12 does not equal hidden_size / num_attention_heads = 8",
    ],
    "lfm2": [
        "a hybrid of another kind (lfm2)",
        "gated short convolutions (lfm2)",
        "QK-norm (lfm2)",
    ],
    "nemotron_h": [
        "a hybrid of another kind (nemotron_h)",
        "layers of one part each (nemotron_h)",
        "an MLP without a gate (nemotron_h)",
        "no rotary embedding (nemotron_h)",
        "mixture of experts (num_local_experts=4)",
    ],
    "olmo_hybrid": [
        "a hybrid of another kind (olmo_hybrid)",
        "gated delta rule (olmo_hybrid)",
        "QK-norm (olmo_hybrid)",
        "norms after attention and MLP instead of before (olmo_hybrid)",
    ],
    "qwen3_next": [
        "a hybrid of another kind (qwen3_next)",
        "gated delta rule (qwen3_next)",
        "QK-norm (qwen3_next)",
        "partial rotary embedding (partial_rotary_factor=0.25)",
        "mixture of experts (num_experts=4)",
    ],
    "qwen3_5_text": [
        "a hybrid of another kind (qwen3_5_text)",
        "gated delta rule (qwen3_5_text)",
        "QK-norm (qwen3_5_text)",
        "partial rotary embedding (partial_rotary_factor=0.25)",
    ],
    "qwen3_5_moe_text": [
        "a hybrid of another kind (qwen3_5_moe_text)",
        "gated delta rule (qwen3_5_moe_text)",
        "QK-norm (qwen3_5_moe_text)",
        "partial rotary embedding (partial_rotary_factor=0.25)",
        "mixture of experts (num_experts=4)",
    ],
    "zamba2": [
        "a hybrid of another kind (zamba2)",
        "attention blocks shared between layers (zamba2)",
        "activation gelu (hidden_act; only silu)",
        "head size 16 does not equal hidden_size / num_attention_heads = 8",
    ],
}


def longrope(rotated: int) -> dict[str, Any]:
    """Settings with a factor for each pair of rotated channels; a config writes into them."""
    return {"rope_type": "longrope", "short_factor": [1.0] * rotated, "long_factor": [2.0] * rotated}


def test_every_refused_family_has_its_answer() -> None:
    assert set(NAMED) == set(tiny.REFUSED)


@pytest.mark.parametrize("family", NAMED)
def test_each_refusal_by_name(family: str) -> None:
    assert in_the_way(tiny.build(family).config) == NAMED[family]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_stands_in_the_way(family: str) -> None:
    assert in_the_way(tiny.build(family).config) == []


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(sliding_window=32768, max_position_embeddings=32768),
        MistralConfig(sliding_window=None),
        LlamaConfig(head_dim=128),
        LlamaConfig(attention_bias=True),
        Qwen2Config(sliding_window=4096, use_sliding_window=False),
        LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
        LlamaConfig(hidden_act="swish"),
    ],
)
def test_settings_that_are_no_obstacle(config: Any) -> None:
    assert in_the_way(config) == []


def test_one_token_less_than_the_context_is_a_window() -> None:
    config = MistralConfig(sliding_window=32767, max_position_embeddings=32768)
    assert in_the_way(config) == ["sliding-window attention (sliding_window=32767)"]


def test_partial_rotary_embedding() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    expected = "partial rotary embedding (partial_rotary_factor=0.5)"
    assert in_the_way(LlamaConfig(rope_parameters=rope)) == [expected]
    assert expected in in_the_way(Phi3Config(rope_parameters=rope))


def test_a_head_size_that_does_not_divide_the_width() -> None:
    (feature,) = in_the_way(Qwen2Config(hidden_size=100, num_attention_heads=3, num_key_value_heads=3))
    assert feature == "head size 33 does not equal hidden_size / num_attention_heads = 33.3333"


@pytest.mark.parametrize(
    ("config", "features"),
    [
        # As published: Phi-3-mini-4k, Phi-3.5-mini (a window beyond the context) and Phi-4-mini.
        (Phi3Config(sliding_window=2047), ["sliding-window attention (sliding_window=2047)"]),
        (
            Phi3Config(sliding_window=262144, max_position_embeddings=131072, rope_parameters=longrope(48)),
            [],
        ),
        (
            Phi3Config(
                num_attention_heads=24,
                num_key_value_heads=8,
                sliding_window=262144,
                max_position_embeddings=131072,
                partial_rotary_factor=0.75,
                rope_parameters=longrope(48),
            ),
            ["partial rotary embedding (partial_rotary_factor=0.75)"],
        ),
    ],
)
def test_phi_models_that_fit_and_that_do_not(config: Any, features: list[str]) -> None:
    assert in_the_way(config) == features


def test_an_unknown_architecture_is_an_obstacle_too() -> None:
    (feature,) = in_the_way(BertConfig())
    assert feature.startswith("unknown architecture (model_type='bert'; known are llama, ")
