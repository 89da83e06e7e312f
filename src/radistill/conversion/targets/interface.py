"""What a target is: an architecture that students can have."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFWriter
from pydantic import BaseModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from radistill.errors import RadistillError
from radistill.mixers.interface import Geometry, Mixer
from radistill.mixers.nothing import NOTHING
from radistill.models.anatomy import Architecture, Component
from radistill.models.checkpoint import quiet
from radistill.models.loading import Model

CARRIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
)
"""Fields that mean the same in the config of a Llama-like source and in a student's."""


class TargetSettings(BaseModel, extra="forbid", frozen=True):
    """Settings of a target, which a recipe tells apart by `kind`: a literal with a default in each class of its own."""

    kind: str


@dataclass(frozen=True)
class GGUFFormat:
    """How llama.cpp wants the students of one target.

    Attributes:
        architecture: llama.cpp's name of it.
        float32: kinds of matrices that are never stored in fewer bits.
        obstacles: features of a student that llama.cpp cannot compute, by name; empty if it can hold it.
        write_settings: adds the model's sizes, multipliers, positions and kinds of layers to the metadata.
        extra: tensors of the file, by name, that no weight of the folder holds.
        translate: the tensors of the file, by name, that hold one weight of the folder, given its name, itself (or its
            shape on the meta device) and the config. Raises a `RadistillError` for a weight that has no place.
    """

    architecture: MODEL_ARCH
    float32: tuple[MODEL_TENSOR, ...]
    obstacles: Callable[[PreTrainedConfig], list[str]]
    write_settings: Callable[[GGUFWriter, PreTrainedConfig], None]
    extra: Callable[[PreTrainedConfig], dict[str, Tensor]]
    translate: Callable[[str, Tensor, PreTrainedConfig], dict[str, Tensor]]


def dictated(own: Geometry, asked: Mapping[str, Any], layers: str) -> None:
    """Check settings against blocks that the source has already: an architecture knows only one geometry.

    Args:
        own: of the source's blocks.
        asked: what the settings say, by the names of the geometry's fields; None is left open.
        layers: what layers with such blocks are called.

    Raises:
        RadistillError: naming the first setting that says otherwise.
    """
    for name, value in asked.items():
        if value is not None and value != getattr(own, name):
            raise RadistillError(
                f"target.{name} is {value}, but this model's {layers} have {getattr(own, name)}, and new ones must be "
                "like them; leave the field out"
            )


def weight_shapes(config: PreTrainedConfig) -> dict[str, list[int]]:
    """Shapes of the weights in the folder of a model that is stored as its network has it, by name."""
    with torch.device("meta"), quiet():
        network = AutoModelForCausalLM.from_config(config)
    tied = set(network.all_tied_weights_keys)
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items() if name not in tied}


class Target(ABC):
    """An architecture that holds the source's weights as they are and can do without attention in any of its layers.

    Attributes:
        settings: what can be chosen; its `kind` names the target.
        model_types: transformers' names of the architecture and its forms.
        mixers: the kinds of block that it can have in place of attention; none where layers go altogether. Such a
            target is never taken unless it is named.
        goes: the components of a layer of the plan that go.
        keeps: how many attention layers must stay.
        keeps_because: why.
        rounding: for number formats in which the architecture cannot store a source's weights as they are, the largest
            difference of any logit that this may make, in units of the logits' root mean square.
        architecture: its entry in the table of `models.anatomy`, where that has none.
        gguf: how llama.cpp wants its students; None where it cannot run them.
    """

    settings: ClassVar[type[TargetSettings]]
    model_types: ClassVar[tuple[str, ...]]
    mixers: ClassVar[tuple[Mixer, ...]] = ()
    goes: ClassVar[tuple[Component, ...]] = (Component.ATTENTION,)
    keeps: ClassVar[int] = 0
    keeps_because: ClassVar[str] = ""
    rounding: ClassVar[Mapping[torch.dtype, float]] = MappingProxyType({})
    architecture: ClassVar[Architecture | None] = None
    gguf: ClassVar[GGUFFormat | None] = None

    @property
    def kind(self) -> str:
        """The name under which it is registered."""
        return str(self.settings.model_fields["kind"].default)

    def mixer(self, settings: TargetSettings) -> Mixer:
        """The one of `mixers` that these settings ask for; a target with several has a setting for it."""
        return self.mixers[0] if self.mixers else NOTHING

    def new_blocks(self, replace: Sequence[int]) -> Sequence[int]:
        """The student's layers that have a new block, where the layers `replace` of the source are the plan's."""
        return replace if self.mixers else ()

    @abstractmethod
    def check(self, config: PreTrainedConfig) -> list[str]:
        """Features of a source model that this architecture cannot hold, by name; empty if it can hold it."""

    @abstractmethod
    def geometry(self, config: PreTrainedConfig, settings: TargetSettings) -> Geometry:
        """Shape of the new blocks for this source.

        Raises:
            RadistillError: if the settings do not fit the source.
        """

    @abstractmethod
    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """Build the student: weights copied from the source, the blocks that replace attention filled with NaN.

        Args:
            model: the source.
            replace: layers whose attention is replaced, sorted.
            settings: this target's settings.
            share: let the student's tensors be the source's own wherever nothing has to be joined. Saves memory for a
                comparison; the result must not be trained.
        """

    def students(self, attention: Sequence[int]) -> list[Sequence[int]]:
        """The attention layers, in as many groups as it takes students to have each replaced in one of them."""
        most = max(len(attention) - self.keeps, 1)
        return [attention[first : first + most] for first in range(0, len(attention), most)]

    def weight_shapes(self, config: PreTrainedConfig) -> dict[str, list[int]]:
        """Shapes of the weights in a student's folder, by name."""
        return weight_shapes(config)

    def remarks(self, config: PreTrainedConfig) -> list[str]:
        """What engines and their versions make of a student, in sentences for its card."""
        return []
