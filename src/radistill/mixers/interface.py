"""What a mixer is: a kind of block that can stand in place of attention, and all that the rest of the package asks it.

A mixer is one folder here and one call of `register_mixer`. What it needs to know of a model comes as plain sizes, so
that nothing here depends on how models are loaded or take themselves apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from radistill.errors import RadistillError
from radistill.mixers.fast.swap import Swap


class Attention(Protocol):
    """The parts of a Llama-like attention."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


class Norm(Protocol):
    """A norm of a block; its weight has one number a channel that it norms."""

    weight: Tensor


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of the attention that a block replaces.

    Attributes:
        heads: number of query heads.
        kv_heads: number of key and value heads.
        head_dim: channels of a head.
        bias: whether the projections of queries, keys and values have biases.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool


class Geometry(Protocol):
    """The shape of one block, a dataclass of plain values: with its weights, all that its function depends on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def state_numbers(self) -> int:
        """Numbers that a block remembers of one sequence, at any length."""


class ConfigGeometry:
    """A geometry that the configs of transformers hold.

    Attributes:
        names: what the config calls each of its fields.
    """

    names: ClassVar[dict[str, str]]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Self:
        """The geometry of the blocks that a config describes."""
        return cls(**{field: getattr(config, name) for field, name in cls.names.items()})

    def config_fields(self) -> dict[str, Any]:
        """The fields of a config from which `of` reads it."""
        return {name: getattr(self, field) for field, name in self.names.items()}


@dataclass(frozen=True)
class Context:
    """What an initialisation may use besides the two modules.

    Attributes:
        shape: of the attention that is replaced.
        generator: on the CPU, seeded from the conversion's seed and the layer, so that a layer's draw does not depend
            on which other layers are replaced.
    """

    shape: AttentionShape
    generator: torch.Generator


@dataclass(frozen=True)
class Initialisation:
    """One way to fill a new block.

    Attributes:
        fill: writes every parameter of a block, given the `attention` module that it replaces. Called under `no_grad`;
            the block holds NaN before, and none may be left after.
        obstacles: preconditions on the block's geometry and the attention's shape that do not hold, each naming the
            field and the way out.
        silent: the block's output is exactly zero at first, so the student starts as the draft that skips these layers.
        summary: one line for listings.
        needs_fit: the start is unfinished until `align` has fitted the blocks, so a recipe must not leave that out.
        rate: learning rate of new blocks that start so far from the teacher that the rate of fitted ones would leave
            them there; None where that rate will do.
    """

    fill: Callable[[Any, Attention, Context], None]
    obstacles: Callable[[Any, AttentionShape], list[str]]
    silent: bool
    summary: str
    needs_fit: bool = False
    rate: float | None = None


def any_geometry(geometry: Geometry, shape: AttentionShape) -> list[str]:
    """The obstacles of an initialisation that fits whatever geometry."""
    return []


@dataclass(frozen=True)
class Mixer:
    """A kind of block, from hidden states [batch, time, hidden] to what attention would add to them, of the same shape.

    A block is a causal module that takes an `attention_mask`, [batch, time], too.

    Attributes:
        kind: in records, cache keys and the tags of a hub.
        title: for people.
        phrase: the same in a sentence, with its article.
        initialisations: how a block can start, by name.
        silent: the initialisation whose blocks say nothing whatever their geometry.
        geometry: the shape of the blocks in the network that a config describes.
        output: a block's last linear layer, in which its output is linear, for a fit in closed form; None if there is
            none.
        swap: lets the blocks in a network run faster code of ours; None if there is none.
    """

    kind: str
    title: str
    phrase: str
    initialisations: dict[str, Initialisation]
    silent: str
    geometry: Callable[[PreTrainedConfig], Geometry]
    output: Callable[[Any], nn.Linear | None] = lambda block: None
    swap: Swap | None = None

    def initialisation(self, name: str) -> Initialisation:
        """The initialisation called `name`.

        Raises:
            RadistillError: listing the known names.
        """
        if name not in self.initialisations:
            raise RadistillError(f"init: {name!r} is unknown; choose from {', '.join(self.initialisations)}")
        return self.initialisations[name]
