"""Configs of well-known models, as published, for estimates where the hub cannot be reached.

Only a dry run reads this table; a run itself loads the config that comes with the weights.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from radistill.models.aliases import ALIASES


def _llama3(scaling: float, **fields: Any) -> tuple[str, dict[str, Any]]:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": scaling,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    common = {
        "vocab_size": 128_256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
    }
    return "llama", {**common, **fields}


def _qwen2(**fields: Any) -> tuple[str, dict[str, Any]]:
    common = {
        "vocab_size": 151_936,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    }
    return "qwen2", {**common, **fields}


def _smollm2(theta: float, **fields: Any) -> tuple[str, dict[str, Any]]:
    common = {
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
    }
    return "llama", {**common, **fields}


_LLAMA_3_2_1B = _llama3(
    32.0,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    tie_word_embeddings=True,
)
_LLAMA_3_2_3B = _llama3(
    32.0,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    tie_word_embeddings=True,
)

KNOWN_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.2-1B": _LLAMA_3_2_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_3_2_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_3_2_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3_2_3B,
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(
        8.0,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": _qwen2(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14
    ),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": _qwen2(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(
        100_000.0,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(
        100_000.0,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(
        130_000.0,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
}


def known_config(source: str) -> PreTrainedConfig | None:
    """The config of a hub id or alias from the table; None if it is not in there."""
    entry = KNOWN_CONFIGS.get(ALIASES[source].hub if source in ALIASES else source)
    if entry is None:
        return None
    model_type, fields = entry
    return AutoConfig.for_model(model_type, **fields)
