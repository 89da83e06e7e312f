"""The shape of a Mamba-2 block, as targets choose it and initialisations need it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mamba2Geometry:
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
