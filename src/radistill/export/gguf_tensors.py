"""Where each weight of a `granitemoehybrid` folder goes in a GGUF file, and in what form llama.cpp expects it there."""

import gguf
import numpy as np
import torch
from gguf import MODEL_TENSOR, GGMLQuantizationType
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.errors import RadistillError

# The ratio of inner to model width that llama.cpp demands.
EXPAND = 2

# What `--dtype` may name, and the type of matrices then. Vectors, norms and the scan's parameters stay float32.
TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}

ROTARY_DIVISORS = f"{gguf.TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight"

_MODEL = {
    "model.embed_tokens": MODEL_TENSOR.TOKEN_EMBD,
    "model.norm": MODEL_TENSOR.OUTPUT_NORM,
    "lm_head": MODEL_TENSOR.OUTPUT,
}
_BLOCK = {
    "input_layernorm": MODEL_TENSOR.ATTN_NORM,
    "post_attention_layernorm": MODEL_TENSOR.FFN_NORM,
    "self_attn.q_proj": MODEL_TENSOR.ATTN_Q,
    "self_attn.k_proj": MODEL_TENSOR.ATTN_K,
    "self_attn.v_proj": MODEL_TENSOR.ATTN_V,
    "self_attn.o_proj": MODEL_TENSOR.ATTN_OUT,
    "mamba.in_proj": MODEL_TENSOR.SSM_IN,
    "mamba.conv1d": MODEL_TENSOR.SSM_CONV1D,
    "mamba.norm": MODEL_TENSOR.SSM_NORM,
    "mamba.out_proj": MODEL_TENSOR.SSM_OUT,
    "block_sparse_moe.router.layer": MODEL_TENSOR.FFN_GATE_INP,
    "block_sparse_moe.output_linear": MODEL_TENSOR.FFN_DOWN_EXP,
}
# Parameters of the scan, whose names have no ".weight" to replace.
_SCAN = {
    "mamba.A_log": (MODEL_TENSOR.SSM_A, ""),
    "mamba.D": (MODEL_TENSOR.SSM_D, ""),
    "mamba.dt_bias": (MODEL_TENSOR.SSM_DT, ".bias"),
}
# Beside experts, the MLP that every token passes is called a shared expert.
_SHARED_MLP = {
    False: (MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP, MODEL_TENSOR.FFN_DOWN),
    True: (MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP, MODEL_TENSOR.FFN_DOWN_SHEXP),
}
_ALWAYS_FLOAT32 = (
    MODEL_TENSOR.SSM_CONV1D,
    MODEL_TENSOR.SSM_A,
    MODEL_TENSOR.SSM_D,
    MODEL_TENSOR.SSM_NORM,
    MODEL_TENSOR.FFN_GATE_INP,
)


def translate(name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The GGUF tensors, by name, that hold one weight of the folder. Works on the meta device too, for the shapes.

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
    if stem not in _MODEL:
        raise _no_place(name)
    return {f"{gguf.TENSOR_NAMES[_MODEL[stem]]}.{suffix}": tensor}


def storage_type(name: str, tensor: Tensor, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type in which a GGUF tensor is stored when matrices are to have the type `wanted`."""
    stem = name.removesuffix(".weight")
    always = {gguf.TENSOR_NAMES[kind].removeprefix("blk.{bid}.") for kind in _ALWAYS_FLOAT32}
    if tensor.dim() < 2 or stem.rpartition(".")[2] in always:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def stored_bytes(tensor: Tensor, kind: GGMLQuantizationType) -> int:
    """Bytes that a tensor takes in the file."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return tensor.numel() // block * size


def encode(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor as its storage type has them.

    Raises:
        RadistillError: if a value is NaN, infinite, or too large for float16.
    """
    values = tensor.float().contiguous().numpy()
    if not np.isfinite(values).all():
        raise RadistillError(f"{name}: holds NaN or infinite numbers, so this model is not exported")
    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise RadistillError(f"{name}: holds numbers that float16 cannot; take --dtype bfloat16 or float32")
    return gguf.quants.quantize(values, kind)


def rotary_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (or its bias) for llama.cpp's rotation.

    transformers rotates entry i of a head together with entry i + size/2, llama.cpp entries 2i and 2i+1. The scores are
    the same when queries and keys are reordered alike.
    """
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def padding(config: PreTrainedConfig) -> int:
    """By what factor the SSM heads and groups are multiplied, the new ones being zero.

    llama.cpp aborts unless the inner width is twice the model's. Heads of zeros, in groups of their own, widen a block
    of `mamba_expand` 1 without changing what it computes: the gated norm works group by group.
    """
    return EXPAND // config.mamba_expand


def _translate_block(
    name: str, part: str, tensor: Tensor, config: PreTrainedConfig
) -> list[tuple[MODEL_TENSOR, str, Tensor]]:
    if part in _SCAN:
        kind, suffix = _SCAN[part]
        tensor = _widened(tensor, [config.mamba_n_heads], config)
        value = -torch.exp(tensor.float()) if part == "mamba.A_log" else tensor
        return [(kind, suffix, value if suffix else value[:, None])]
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
    if stem not in _BLOCK or (stem.startswith("mamba.") and ending == "bias" and stem != "mamba.conv1d"):
        raise _no_place(name)
    return [(_BLOCK[stem], suffix, _reshape(stem, ending, tensor, config))]


def _reshape(stem: str, ending: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    rotary = config.position_embedding_type == "rope"
    if stem == "self_attn.q_proj" and rotary:
        return rotary_pairs(tensor, config.num_attention_heads)
    if stem == "self_attn.k_proj" and rotary:
        return rotary_pairs(tensor, config.num_key_value_heads)
    inner, states = config.mamba_n_heads * config.mamba_d_head, config.mamba_n_groups * config.mamba_d_state
    if stem == "mamba.in_proj":
        return _widened(tensor, [inner, inner, states, states, config.mamba_n_heads], config)
    if stem == "mamba.conv1d":
        wide = _widened(tensor, [inner, states, states], config)
        return wide.squeeze(1) if ending == "weight" else wide
    if stem == "mamba.norm":
        return _widened(tensor, [inner], config).reshape(config.mamba_n_groups * padding(config), -1)
    if stem == "mamba.out_proj":
        return _widened(tensor.T, [inner], config).T
    return tensor


def _widened(tensor: Tensor, sizes: list[int], config: PreTrainedConfig) -> Tensor:
    """Append to each of the segments along the first dimension the zeros of the heads or groups that are added."""
    zeros = padding(config) - 1
    return torch.cat([part for piece in tensor.split(sizes) for part in (piece, *[torch.zeros_like(piece)] * zeros)])


def _no_place(name: str) -> RadistillError:
    return RadistillError(f"{name}: llama.cpp's granitehybrid has no place for this weight, so this model has no GGUF")
