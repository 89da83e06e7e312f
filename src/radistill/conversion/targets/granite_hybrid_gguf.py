"""How llama.cpp's `granitehybrid` wants a `granitemoehybrid` model: settings, tensors, and what it cannot do."""

import math
from typing import Any

import gguf
import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radistill.conversion.targets.interface import GGUFFormat
from radistill.errors import RadistillError
from radistill.mixers.mamba2 import gguf as mamba2
from radistill.mixers.mamba2.geometry import Mamba2Geometry

# Rotary scalings whose frequencies do not depend on the length of the text.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ROTARY_DIVISORS = f"{gguf.TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight"
_SSM = "mamba."

# llama.cpp's names by transformers'; what a layer's parts are called does not depend on its number.
_NAMES = gguf.get_tensor_name_map(MODEL_ARCH.GRANITE_HYBRID, 1)
# Beside experts, the MLP that every token passes is called a shared expert.
_SHARED_MLP = {
    False: (MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP, MODEL_TENSOR.FFN_DOWN),
    True: (MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP, MODEL_TENSOR.FFN_DOWN_SHEXP),
}


def _obstacles(config: PreTrainedConfig) -> list[str]:
    """Features of a model that llama.cpp's `granitehybrid` cannot compute, by name."""
    found = []
    rope = rope_of(config)
    if config.position_embedding_type == "rope" and rope["rope_type"] not in _ROPE_TYPES:
        found.append(f"rotary scaling of type {rope['rope_type']} (only {', '.join(_ROPE_TYPES)})")
    if all(_is_attention(kind) for kind in config.layer_types or ()):
        found.append("no SSM layer (llama.cpp needs one; a GGUF of the source model is what you want)")
    if config.hidden_act != "silu":
        found.append(f"activation {config.hidden_act} (hidden_act; only silu)")
    found += mamba2.obstacles(Mamba2Geometry.of(config))
    low, high = getattr(config, "time_step_limit", None) or (0.0, math.inf)
    if low > 0 or high < math.inf:
        found.append(f"limited step sizes (time_step_limit={(low, high)})")
    return found


def _write_settings(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the model's sizes, multipliers, positions and kinds of layers to the metadata."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_mlp(writer, config)

    # llama.cpp takes a layer without key and value heads for a recurrent one.
    writer.add_head_count(config.num_attention_heads)
    heads = [config.num_key_value_heads * _is_attention(kind) for kind in config.layer_types or ()]
    writer.add_head_count_kv(heads)
    _, stretch = _rotary_scaling(config)
    writer.add_attention_scale(config.attention_multiplier * stretch**2)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)

    mamba2.write_settings(writer, Mamba2Geometry.of(config))
    _write_positions(writer, config)


def _extra(config: PreTrainedConfig) -> dict[str, Tensor]:
    """Divisors of the rotary frequencies, where they are scaled."""
    divisors, _ = _rotary_scaling(config)
    return {} if divisors is None else {ROTARY_DIVISORS: divisors}


def _translate(name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The GGUF tensors, by name, that hold one weight of the folder.

    Raises:
        RadistillError: for a weight that has no place in llama.cpp's `granitehybrid`.
    """
    if name.startswith("model.layers."):
        _, _, layer, part = name.split(".", 3)
        return {
            gguf.TENSOR_NAMES[kind].format(bid=layer) + suffix: value
            for kind, suffix, value in _translate_block(name, part, tensor, config)
        }
    stem, _, suffix = name.rpartition(".")
    kind = _NAMES.get_type(stem)
    if kind is None:
        raise _no_place(name)
    return {f"{gguf.TENSOR_NAMES[kind]}.{suffix}": tensor}


def rotary_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (or its bias) for llama.cpp's rotation.

    transformers rotates entry i of a head together with entry i + size/2, llama.cpp entries 2i and 2i+1. The scores are
    the same when queries and keys are reordered alike.
    """
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _translate_block(
    name: str, part: str, tensor: Tensor, config: PreTrainedConfig
) -> list[tuple[MODEL_TENSOR, str, Tensor]]:
    if part.startswith(_SSM):
        translated = mamba2.translate(part.removeprefix(_SSM), tensor, Mamba2Geometry.of(config))
        if translated is None:
            raise _no_place(name)
        return [translated]
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
    kind = _NAMES.get_type(f"model.layers.0.{stem}")
    if kind is None:
        raise _no_place(name)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    if stem in heads and config.position_embedding_type == "rope":
        tensor = rotary_pairs(tensor, heads[stem])
    return [(kind, suffix, tensor)]


def _no_place(name: str) -> RadistillError:
    return RadistillError(f"{name}: llama.cpp's granitehybrid has no place for this weight, so this model has no GGUF")


def _is_attention(kind: str) -> bool:
    """Whether a layer type, by transformers' name or by IBM's, is attention."""
    return kind in ("attention", "full_attention")


def _rotary_scaling(config: PreTrainedConfig) -> tuple[Tensor | None, float]:
    """By what each rotary frequency is divided (None: by nothing), and the factor of rotated queries and keys.

    llama.cpp takes any such divisors as a tensor of the file, so a scaling needs no name there. The factor, which only
    YaRN has, goes into the scale of the scores.
    """
    rope = rope_of(config)
    if config.position_embedding_type != "rope" or rope["rope_type"] == "default":
        return None, 1.0
    return rotary_divisors(config, config.hidden_size // config.num_attention_heads)


def rotary_divisors(config: PreTrainedConfig, size: int) -> tuple[Tensor, float]:
    """By what transformers divides each rotary frequency of heads of `size`, whose rotary is scaled, and its factor."""
    rope = rope_of(config)
    scaled, stretch = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled.double()).float(), float(stretch)


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
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])


def rope_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's rotary parameters, with the defaults of what it leaves out."""
    return {"rope_type": "default", "rope_theta": 10000.0} | dict(config.rope_parameters or {})


FORMAT = GGUFFormat(
    architecture=MODEL_ARCH.GRANITE_HYBRID,
    float32=(*mamba2.FLOAT32, MODEL_TENSOR.FFN_GATE_INP),
    obstacles=_obstacles,
    write_settings=_write_settings,
    extra=_extra,
    translate=_translate,
)
