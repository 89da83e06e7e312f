"""Mamba-2's published initialisation, as far as it is the block's own (arXiv 2405.21060 and its reference code)."""

import torch

from radistill.mixers.interface import Attention
from radistill.mixers.mamba2.geometry import Mamba2Block
from radistill.mixers.start import decays


def recurrence(block: Mamba2Block, generator: torch.Generator) -> None:
    """Decays and step sizes; D and the norm's weight are 1."""
    decays(block.A_log, block.dt_bias, generator)
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
