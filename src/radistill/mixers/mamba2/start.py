"""Mamba-2's published initialisation, part by part (arXiv 2405.21060 and its reference code)."""

import math

import torch
from torch import Tensor, nn

from radistill.mixers.interface import Attention
from radistill.mixers.mamba2.geometry import Mamba2Block

A_RANGE = (1.0, 16.0)
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


def uniform(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """Fill `tensor` uniformly from [low, high), drawn on the CPU in float32, so that every device gets the same."""
    drawn = torch.empty(tensor.shape, dtype=torch.float32).uniform_(low, high, generator=generator)
    tensor.copy_(drawn)


def linear_weight(weight: Tensor, generator: torch.Generator) -> None:
    """PyTorch's default for a linear layer, weight [out, in]: uniform within 1 / sqrt(in)."""
    bound = 1 / math.sqrt(weight.shape[1])
    uniform(weight, -bound, bound, generator)


def convolution(conv: nn.Conv1d, generator: torch.Generator) -> None:
    """PyTorch's default for a depthwise convolution, weight [channels, 1, taps]: all uniform within 1 / sqrt(taps)."""
    bound = 1 / math.sqrt(conv.weight.shape[-1])
    uniform(conv.weight, -bound, bound, generator)
    if conv.bias is not None:
        uniform(conv.bias, -bound, bound, generator)


def recurrence(block: Mamba2Block, generator: torch.Generator) -> None:
    """Decay, step size, skip and norm.

    -A is uniform in [1, 16]. The step size softplus(dt_bias) is log-uniform in [1e-3, 1e-1]; its bias is the inverse
    softplus, dt + log(-expm1(-dt)). D and the norm's weight are 1.
    """
    decay = torch.empty(block.A_log.shape, dtype=torch.float32).uniform_(*A_RANGE, generator=generator)
    block.A_log.copy_(decay.log())
    low, high = (math.log(bound) for bound in DT_RANGE)
    step = torch.empty(block.dt_bias.shape, dtype=torch.float32).uniform_(low, high, generator=generator).exp()
    step = step.clamp(min=DT_FLOOR)
    block.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
    block.D.fill_(1.0)
    block.norm.weight.fill_(1.0)


def zero_projection_biases(block: Mamba2Block) -> None:
    """Biases of the two projections, where a source hybrid's blocks have them."""
    for projection in (block.in_proj, block.out_proj):
        if projection.bias is not None:
            projection.bias.zero_()


def copy_output(block: Mamba2Block, attention: Attention) -> None:
    """`out_proj` from `o_proj`, both [hidden, inner]. A bias of `o_proj` has a place only where `out_proj` has one."""
    block.out_proj.weight.copy_(attention.o_proj.weight)
    if block.out_proj.bias is not None and attention.o_proj.bias is not None:
        block.out_proj.bias.copy_(attention.o_proj.bias)
