"""The shape of a Gated DeltaNet block, as targets choose it and initialisations need it, and its parts."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from radistill.mixers.interface import ConfigGeometry, Norm


@dataclass(frozen=True)
class GDNGeometry(ConfigGeometry):
    """Sizes of one Gated DeltaNet block (arXiv 2412.06464).

    Attributes:
        key_heads: heads of queries and keys; each serves `value_heads / key_heads` neighbouring value heads.
        value_heads: heads of values, gates, decays, writing strengths and outputs.
        key_dim: channels of a query and of a key.
        value_dim: channels of a value, of its gate and of an output.
        conv_kernel: taps of the causal depthwise convolution over queries, keys and values.
    """

    names: ClassVar[dict[str, str]] = {
        "key_heads": "linear_num_key_heads",
        "value_heads": "linear_num_value_heads",
        "key_dim": "linear_key_head_dim",
        "value_dim": "linear_value_head_dim",
        "conv_kernel": "linear_conv_kernel_dim",
    }

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int

    @property
    def keys(self) -> int:
        """Width of all queries, and of all keys."""
        return self.key_heads * self.key_dim

    @property
    def inner(self) -> int:
        """Width of all values, of their gates and of the input of `out_proj`."""
        return self.value_heads * self.value_dim

    @property
    def state_numbers(self) -> int:
        """A state [key_dim, value_dim] for each value head, and the convolution's memory."""
        return self.inner * self.key_dim + (2 * self.keys + self.inner) * self.conv_kernel


class GDNBlock(Protocol):
    """The parts of transformers' Gated DeltaNet block, with the rows of `in_proj_qkv` in the order q, k, v."""

    in_proj_qkv: nn.Linear
    in_proj_z: nn.Linear
    in_proj_b: nn.Linear
    in_proj_a: nn.Linear
    conv1d: nn.Conv1d
    dt_bias: Tensor
    A_log: Tensor
    norm: Norm
    out_proj: nn.Linear
