"""The shape of a Mamba-2 block, as targets choose it and initialisations need it, and its parts."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from radistill.mixers.interface import ConfigGeometry, Norm


@dataclass(frozen=True)
class Mamba2Geometry(ConfigGeometry):
    """Sizes of one Mamba-2 block (arXiv 2405.21060) inside a model of width `hidden_size`.

    Attributes:
        heads: number of SSM heads.
        head_dim: channels of a head (of `x`, `z` and the output).
        groups: number of B/C groups; each serves `heads / groups` neighbouring heads.
        state: entries of B and C per group, and of the state per channel.
        expand: inner width (`heads * head_dim`) over the model's width.
        conv_kernel: taps of the causal depthwise convolution over x, B and C.
        conv_bias: whether that convolution has a bias.
        proj_bias: whether the input and output projections have one.
    """

    names: ClassVar[dict[str, str]] = {
        "heads": "mamba_n_heads",
        "head_dim": "mamba_d_head",
        "groups": "mamba_n_groups",
        "state": "mamba_d_state",
        "expand": "mamba_expand",
        "conv_kernel": "mamba_d_conv",
        "conv_bias": "mamba_conv_bias",
        "proj_bias": "mamba_proj_bias",
    }

    heads: int
    head_dim: int
    groups: int
    state: int
    expand: int
    conv_kernel: int
    conv_bias: bool = True
    proj_bias: bool = False

    @property
    def inner(self) -> int:
        """Width of x, z and the input of `out_proj`."""
        return self.heads * self.head_dim

    @property
    def state_numbers(self) -> int:
        """A state for each channel, and the convolution's memory over the channels and the groups' B and C."""
        return self.inner * self.state + (self.inner + 2 * self.groups * self.state) * self.conv_kernel


class Mamba2Block(Protocol):
    """The parts of transformers' Mamba-2 block, with the rows of `in_proj` in the order z, x, B, C, dt."""

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm: Norm
    out_proj: nn.Linear
