"""The settings of a `granitemoehybrid` config as llama.cpp's `granitehybrid` reads them, and what it cannot do."""

import math
from typing import Any

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radistill.export.gguf_tensors import EXPAND, padding
from radistill.export.weights import STUDENT

# Rotary scalings whose frequencies do not depend on the length of the text.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def is_attention(kind: str) -> bool:
    """Whether a layer type, by transformers' name or by IBM's, is attention."""
    return kind in ("attention", "full_attention")


def obstacles(config: PreTrainedConfig) -> list[str]:
    """Features of a model that llama.cpp's `granitehybrid` cannot compute, by name; empty if it can hold it."""
    if config.model_type != STUDENT:
        return [f"architecture {config.model_type} (a GGUF is written for {STUDENT} only, which every student is)"]
    found = []
    rope = _rope(config)
    if config.position_embedding_type == "rope" and rope["rope_type"] not in _ROPE_TYPES:
        found.append(f"rotary scaling of type {rope['rope_type']} (only {', '.join(_ROPE_TYPES)})")
    if all(is_attention(kind) for kind in config.layer_types or ()):
        found.append("no SSM layer (llama.cpp needs one; a GGUF of the source model is what you want)")
    if config.hidden_act != "silu":
        found.append(f"activation {config.hidden_act} (hidden_act; only silu)")
    if config.mamba_expand not in (1, EXPAND):
        found.append(f"an inner width of {config.mamba_expand} times the model's (mamba_expand; only 1 and {EXPAND})")
    if config.mamba_proj_bias:
        found.append("biases in the SSM layers' projections (mamba_proj_bias=True)")
    if not config.mamba_conv_bias:
        found.append("a convolution without bias (mamba_conv_bias=False)")
    low, high = getattr(config, "time_step_limit", None) or (0.0, math.inf)
    if low > 0 or high < math.inf:
        found.append(f"limited step sizes (time_step_limit={(low, high)})")
    return found


def rotary_scaling(config: PreTrainedConfig) -> tuple[Tensor | None, float]:
    """By what each rotary frequency is divided (None: by nothing), and the factor of rotated queries and keys.

    llama.cpp takes any such divisors as a tensor of the file, so a scaling needs no name there. The factor, which only
    YaRN has, goes into the scale of the scores.
    """
    rope = _rope(config)
    if config.position_embedding_type != "rope" or rope["rope_type"] == "default":
        return None, 1.0
    scaled, stretch = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    size = config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled.double()).float(), float(stretch)


def write_settings(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the model's sizes, multipliers, positions and kinds of layers to the metadata."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_mlp(writer, config)

    # llama.cpp takes a layer without key and value heads for a recurrent one.
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([config.num_key_value_heads * is_attention(kind) for kind in config.layer_types or ()])
    _, stretch = rotary_scaling(config)
    writer.add_attention_scale(config.attention_multiplier * stretch**2)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)

    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups * padding(config))
    writer.add_ssm_inner_size(config.mamba_n_heads * config.mamba_d_head * padding(config))
    writer.add_ssm_time_step_rank(config.mamba_n_heads * padding(config))
    _write_positions(writer, config)


def _write_mlp(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if config.num_local_experts:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    else:
        writer.add_feed_forward_length(config.shared_intermediate_size)
        writer.add_expert_count(0)
        writer.add_expert_used_count(0)


def _write_positions(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rotary = config.position_embedding_type == "rope"
    # In this architecture the key is a switch: without it llama.cpp rotates nothing, and says nothing.
    writer.add_rope_scaling_finetuned(rotary)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if not rotary:
        return
    writer.add_rope_freq_base(_rope(config)["rope_theta"])


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0} | dict(config.rope_parameters or {})
