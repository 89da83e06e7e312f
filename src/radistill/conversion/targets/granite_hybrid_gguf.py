"""How llama.cpp's `granitehybrid` wants a `granitemoehybrid` model: settings, tensors, and what it cannot do."""

import math
from typing import Any

from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.conversion.targets.plain_gguf import (
    ROTARY_DIVISORS,
    GGUFFormat,
    Piece,
    head_size,
    rope_of,
    rotary_divisors,
    rotates,
    write_sizes,
)
from radistill.mixers.mamba2 import gguf as mamba2
from radistill.mixers.mamba2.geometry import Mamba2Geometry

_SSM = "mamba."
# Beside experts, the MLP that every token passes is called a shared expert.
_SHARED_MLP = {
    False: (MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP, MODEL_TENSOR.FFN_DOWN),
    True: (MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP, MODEL_TENSOR.FFN_DOWN_SHEXP),
}


class _GraniteHybridFormat(GGUFFormat):
    def obstacles(self, config: PreTrainedConfig) -> list[str]:
        found = super().obstacles(config)
        if all(_is_attention(kind) for kind in config.layer_types or ()):
            found.append("no SSM layer (llama.cpp needs one; a GGUF of the source model is what you want)")
        found += mamba2.obstacles(Mamba2Geometry.of(config))
        low, high = getattr(config, "time_step_limit", None) or (0.0, math.inf)
        if low > 0 or high < math.inf:
            found.append(f"limited step sizes (time_step_limit={(low, high)})")
        return found

    def unread(self, rope: dict[str, Any]) -> list[str]:
        return []  # whatever transformers makes of them goes by the divisors and the scale of the scores

    def write_settings(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        write_sizes(writer, config)
        if config.num_local_experts:
            writer.add_feed_forward_length(config.intermediate_size)
            writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
        else:
            writer.add_feed_forward_length(config.shared_intermediate_size)
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok if config.num_local_experts else 0)

        # llama.cpp takes a layer without key and value heads for a recurrent one.
        writer.add_head_count_kv(
            [config.num_key_value_heads * _is_attention(kind) for kind in config.layer_types or ()]
        )
        _, stretch = _rotary_scaling(config)
        writer.add_attention_scale(config.attention_multiplier * stretch**2)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        mamba2.write_settings(writer, Mamba2Geometry.of(config))

        # In this architecture the key is a switch: without it llama.cpp rotates nothing, and says nothing.
        writer.add_rope_scaling_finetuned(rotates(config))
        writer.add_rope_dimension_count(head_size(config))
        if rotates(config):
            writer.add_rope_freq_base(rope_of(config)["rope_theta"])

    def extra(self, config: PreTrainedConfig) -> dict[str, Tensor]:
        divisors, _ = _rotary_scaling(config)
        return {} if divisors is None else {ROTARY_DIVISORS: divisors}

    def pieces(self, part: str, tensor: Tensor, config: PreTrainedConfig) -> list[Piece]:
        if part.startswith(_SSM):
            return mamba2.translate(part.removeprefix(_SSM), tensor, Mamba2Geometry.of(config))
        stem, _, ending = part.rpartition(".")
        suffix = f".{ending}"
        gate, up, down = _SHARED_MLP[bool(config.num_local_experts)]
        if stem == "shared_mlp.input_linear":
            first, second = tensor.chunk(2)
            return [(gate, suffix, first), (up, suffix, second)]
        if stem == "shared_mlp.output_linear":
            return [(down, suffix, tensor)]
        if stem == "block_sparse_moe.input_linear":
            first, second = tensor.chunk(2, dim=1)
            return [(MODEL_TENSOR.FFN_GATE_EXP, suffix, first), (MODEL_TENSOR.FFN_UP_EXP, suffix, second)]
        return super().pieces(part, tensor, config)


def _is_attention(kind: str) -> bool:
    """Whether a layer type, by transformers' name or by IBM's, is attention."""
    return kind in ("attention", "full_attention")


def _rotary_scaling(config: PreTrainedConfig) -> tuple[Tensor | None, float]:
    """By what each rotary frequency is divided (None: by nothing), and the factor of rotated queries and keys.

    llama.cpp takes any such divisors as a tensor of the file, so a scaling needs no name there. The factor, which only
    YaRN has, goes into the scale of the scores.
    """
    return (None, 1.0) if rope_of(config)["rope_type"] == "default" else rotary_divisors(config)


FORMAT = _GraniteHybridFormat(
    MODEL_ARCH.GRANITE_HYBRID,
    # Those whose frequencies do not depend on the length of the text.
    scalings=("default", "linear", "llama3", "yarn"),
    neighbours=True,
    float32=(*mamba2.FLOAT32, MODEL_TENSOR.FFN_GATE_INP),
)
