"""Where the weights of a Gated DeltaNet block go in a GGUF file, and in what form llama.cpp expects them there."""

import torch
from gguf import MODEL_TENSOR, GGUFWriter
from torch import Tensor

from radistill.mixers.gdn.geometry import GDNGeometry

FLOAT32 = (MODEL_TENSOR.SSM_CONV1D, MODEL_TENSOR.SSM_A, MODEL_TENSOR.SSM_NORM)
"""Kinds of matrices that are never stored in fewer bits."""

_KINDS = {
    "in_proj_qkv.weight": (MODEL_TENSOR.ATTN_QKV, ".weight"),
    "in_proj_z.weight": (MODEL_TENSOR.ATTN_GATE, ".weight"),
    "in_proj_b.weight": (MODEL_TENSOR.SSM_BETA, ".weight"),
    "in_proj_a.weight": (MODEL_TENSOR.SSM_ALPHA, ".weight"),
    "conv1d.weight": (MODEL_TENSOR.SSM_CONV1D, ".weight"),
    "A_log": (MODEL_TENSOR.SSM_A, ""),
    "dt_bias": (MODEL_TENSOR.SSM_DT, ".bias"),
    "norm.weight": (MODEL_TENSOR.SSM_NORM, ".weight"),
    "out_proj.weight": (MODEL_TENSOR.SSM_OUT, ".weight"),
}


def obstacles(geometry: GDNGeometry) -> list[str]:
    """What llama.cpp cannot compute in such a block, by name; empty if it can hold it."""
    if geometry.key_dim != geometry.value_dim:
        return [f"keys of {geometry.key_dim} and values of {geometry.value_dim} channels (only heads of one size)"]
    return []


def write_settings(writer: GGUFWriter, geometry: GDNGeometry) -> None:
    """Add the sizes of the blocks to the metadata."""
    writer.add_ssm_conv_kernel(geometry.conv_kernel)
    writer.add_ssm_state_size(geometry.key_dim)
    writer.add_ssm_group_count(geometry.key_heads)
    writer.add_ssm_time_step_rank(geometry.value_heads)
    writer.add_ssm_inner_size(geometry.inner)


def translate(name: str, tensor: Tensor, geometry: GDNGeometry) -> list[tuple[MODEL_TENSOR, str, Tensor]]:
    """Kind, suffix and form of a block's parameter, named as in the block; nothing for one that has no place."""
    if name not in _KINDS:
        return []
    match name:
        case "in_proj_qkv.weight" | "conv1d.weight":
            keys, values = tensor.split([2 * geometry.keys, geometry.inner])
            tensor = torch.cat([keys, _spread(values, geometry)])
            tensor = tensor.squeeze(1) if name == "conv1d.weight" else tensor
        case "out_proj.weight":
            tensor = _spread(tensor.T, geometry).T
        case "A_log":
            tensor = -torch.exp(_spread(tensor, geometry).float())
        case "norm.weight":
            pass  # one for all heads
        case _:
            tensor = _spread(tensor, geometry)
    return [(*_KINDS[name], tensor)]


def _spread(tensor: Tensor, geometry: GDNGeometry) -> Tensor:
    """Reorder value heads, in the first dimension, for llama.cpp.

    In transformers, neighbouring value heads share a key head; in llama.cpp, those that are `key_heads` apart.
    """
    shared = geometry.value_heads // geometry.key_heads
    heads = tensor.reshape(geometry.key_heads, shared, -1, *tensor.shape[1:])
    return heads.transpose(0, 1).reshape(tensor.shape)
