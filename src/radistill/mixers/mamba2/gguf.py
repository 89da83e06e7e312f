"""Where the weights of a Mamba-2 block go in a GGUF file, and in what form llama.cpp expects them there."""

import torch
from gguf import MODEL_TENSOR, GGUFWriter
from torch import Tensor

from radistill.mixers.mamba2.geometry import Mamba2Geometry

# The ratio of inner to model width that llama.cpp demands.
EXPAND = 2

FLOAT32 = (MODEL_TENSOR.SSM_CONV1D, MODEL_TENSOR.SSM_A, MODEL_TENSOR.SSM_D, MODEL_TENSOR.SSM_NORM)
"""Kinds of matrices that are never stored in fewer bits."""

_KINDS = {
    "in_proj.weight": (MODEL_TENSOR.SSM_IN, ".weight"),
    "conv1d.weight": (MODEL_TENSOR.SSM_CONV1D, ".weight"),
    "conv1d.bias": (MODEL_TENSOR.SSM_CONV1D, ".bias"),
    "norm.weight": (MODEL_TENSOR.SSM_NORM, ".weight"),
    "out_proj.weight": (MODEL_TENSOR.SSM_OUT, ".weight"),
    "A_log": (MODEL_TENSOR.SSM_A, ""),
    "D": (MODEL_TENSOR.SSM_D, ""),
    "dt_bias": (MODEL_TENSOR.SSM_DT, ".bias"),
}


def obstacles(geometry: Mamba2Geometry) -> list[str]:
    """What llama.cpp cannot compute in such a block, by name; empty if it can hold it."""
    found = []
    if geometry.expand not in (1, EXPAND):
        found.append(f"an inner width of {geometry.expand} times the model's (mamba_expand; only 1 and {EXPAND})")
    if geometry.proj_bias:
        found.append("biases in the SSM layers' projections (mamba_proj_bias=True)")
    if not geometry.conv_bias:
        found.append("a convolution without bias (mamba_conv_bias=False)")
    return found


def write_settings(writer: GGUFWriter, geometry: Mamba2Geometry) -> None:
    """Add the sizes of the blocks to the metadata."""
    copies = _copies(geometry)
    writer.add_ssm_conv_kernel(geometry.conv_kernel)
    writer.add_ssm_state_size(geometry.state)
    writer.add_ssm_group_count(geometry.groups * copies)
    writer.add_ssm_inner_size(geometry.inner * copies)
    writer.add_ssm_time_step_rank(geometry.heads * copies)


def translate(name: str, tensor: Tensor, geometry: Mamba2Geometry) -> list[tuple[MODEL_TENSOR, str, Tensor]]:
    """Kind, suffix and form of a block's parameter, named as in the block; nothing for one that has no place."""
    if name not in _KINDS:
        return []
    inner, states, heads = geometry.inner, geometry.groups * geometry.state, geometry.heads
    segments = {
        "in_proj": [inner, inner, states, states, heads],
        "conv1d": [inner, states, states],
        "norm": [inner],
        "out_proj": [inner],
    }
    rows = tensor.T if name == "out_proj.weight" else tensor
    parts = rows.split(segments.get(name.partition(".")[0], [heads]))
    added = _copies(geometry) - 1
    wide = torch.cat([piece for part in parts for piece in (part, *[torch.zeros_like(part)] * added)])
    match name:
        case "conv1d.weight":
            wide = wide.squeeze(1)
        case "norm.weight":
            wide = wide.reshape(geometry.groups * _copies(geometry), -1)
        case "out_proj.weight":
            wide = wide.T
        case "A_log":
            wide = -torch.exp(wide.float())[:, None]
        case "D":
            wide = wide[:, None]
    return [(*_KINDS[name], wide)]


def _copies(geometry: Mamba2Geometry) -> int:
    """By what factor heads and groups are multiplied, the new ones being zero.

    llama.cpp aborts unless the inner width is twice the model's. Heads of zeros, in groups of their own, widen a block
    of `expand` 1 without changing what it computes: the gated norm works group by group.
    """
    return EXPAND // geometry.expand
