"""What an initialisation is: a function that fills one new block, and what it needs before any weight is copied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from radistill.conversion.geometry import Mamba2Geometry
from radistill.models.anatomy import Anatomy


class Norm(Protocol):
    """The gated RMSNorm; weight [inner]."""

    weight: Tensor


class Mixer(Protocol):
    """The parts of transformers' Mamba-2 block, with the rows of `in_proj` in the order z, x, B, C, dt."""

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm: Norm
    out_proj: nn.Linear


class Attention(Protocol):
    """The parts of a Llama-like attention."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


@dataclass(frozen=True)
class Context:
    """What an initialiser may use besides the two modules.

    Attributes:
        anatomy: of the source model (heads, KV heads, head size).
        generator: on the CPU, seeded from the conversion's seed and the layer, so that a layer's draw does not depend
            on which other layers are replaced.
    """

    anatomy: Anatomy
    generator: torch.Generator


@dataclass(frozen=True)
class Initialisation:
    """One way to fill a new block.

    Attributes:
        fill: writes every parameter of a Mamba-2 `mixer`, given the `attention` module that it replaces. Called under
            `no_grad`; the block holds NaN before, and none may be left after.
        obstacles: preconditions on the block's geometry that do not hold, each naming the field and the way out.
            Arguments: the geometry, the source's anatomy, and whether the source's q, k and v have biases.
        silent: the block's output is exactly zero at first, so the student starts as the draft that skips these layers.
        summary: one line for listings.
        needs_fit: the start is unfinished until `align` has fitted the blocks, so a recipe must not leave that out.
    """

    fill: Callable[[Mixer, Attention, Context], None]
    obstacles: Callable[[Mamba2Geometry, Anatomy, bool], list[str]]
    silent: bool
    summary: str
    needs_fit: bool = False
    rate: float | None = None
