"""What a target is: an architecture that students can have."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from radistill.conversion.assembly import assemble
from radistill.conversion.targets.plain_gguf import GGUFFormat
from radistill.errors import RadistillError
from radistill.mixers.interface import Geometry, Mixer
from radistill.mixers.nothing import NOTHING, NoGeometry
from radistill.models.anatomy import Component
from radistill.models.architectures import Architecture
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


# The names that every transformers since 5.17 uses inside; on loading it also takes IBM's "mamba" and "attention".
LINEAR_LAYER, ATTENTION_LAYER = "linear_attention", "full_attention"

Count = Annotated[int, Field(strict=True, ge=1)]


G = TypeVar("G", bound=Geometry)


class TargetSettings(BaseModel, extra="forbid", frozen=True):
    """Settings of a target, which a recipe tells apart by `kind`: a literal with a default in each class of its own."""

    kind: str


def dictated(own: G, asked: Mapping[str, Any], layers: str) -> G:
    """The geometry of blocks that the source has already, if settings fit it: an architecture knows only one.

    What the settings say, `asked`, has the names of the geometry's fields; None is left open.

    Raises:
        RadistillError: naming the first setting that says otherwise.
    """
    for name, value in asked.items():
        if value is not None and value != getattr(own, name):
            raise RadistillError(
                f"target.{name} is {value}, but this model's {layers} have {getattr(own, name)}, and new ones must be "
                "like them; leave the field out"
            )
    return own


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
        architecture: its entry in the table of `models.architectures`, where that has none.
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

    def geometry(self, config: PreTrainedConfig, settings: TargetSettings) -> Geometry:
        """Shape of the new blocks for this source; without mixers, there are none.

        Raises:
            RadistillError: if the settings do not fit the source.
        """
        return NoGeometry()

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


class Hybrid(Target):
    """A target whose layers have attention or a block of one kind, as its config's `layer_types` say.

    Attributes:
        block: what a layer calls such a block.
    """

    block: ClassVar[str]
    keeps = 1
    keeps_because = "transformers' cache of this architecture counts tokens in an attention layer"

    @abstractmethod
    def new_config(self, config: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig:
        """Config of a student whose source is of another architecture.

        Args:
            config: the source's.
            fields: the kinds of layers, and the shape of the new blocks.
        """

    def student_config(
        self, config: PreTrainedConfig, replace: Sequence[int], settings: TargetSettings
    ) -> PreTrainedConfig:
        """Config of the student, given the source's, the layers that are replaced, and the settings."""
        own = config.model_type in self.model_types
        before = config.layer_types if own else [ATTENTION_LAYER] * config.num_hidden_layers
        kinds = [LINEAR_LAYER if layer in replace else kind for layer, kind in enumerate(before or ())]
        geometry: Any = self.geometry(config, settings)
        fields = {**geometry.config_fields(), "layer_types": kinds}
        if not own:
            return self.new_config(config, fields)
        student = copy.deepcopy(config)
        for name, value in fields.items():
            setattr(student, name, value)
        return student

    def assembled(
        self,
        network_class: type[PreTrainedModel],
        config: PreTrainedConfig,
        model: Model,
        replace: Sequence[int],
        source_names: Callable[[str], tuple[str, ...]],
        **how: Any,
    ) -> PreTrainedModel:
        """`assembly.assemble` with NaN in the blocks of the layers `replace`, and without their attention."""
        config.dtype = model.network.dtype
        config._attn_implementation = model.network.config._attn_implementation
        return assemble(
            network_class,
            config,
            model.anatomy.unfused(model.network.state_dict()),
            source_names,
            new=tuple(f"model.layers.{layer}.{self.block}." for layer in replace),
            dropped=tuple(f"model.layers.{layer}.self_attn." for layer in replace),
            **how,
        )
