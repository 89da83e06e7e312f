"""The target `cut`: the model's own class with fewer layers, a draft model for speculative decoding.

The layers of a plan go altogether, attention and MLP, and nothing stands in their place. What stays keeps its weights,
embeddings and number format, so the student starts as the draft that skips these layers, loads as the stock class that
its source has, and is served by all that serves the source.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

from transformers import PreTrainedConfig, PreTrainedModel

from radistill.conversion.assembly import assemble
from radistill.conversion.targets.interface import Target, TargetSettings
from radistill.models.anatomy import Component
from radistill.models.loading import Model

_LAYERS = "model.layers."


class CutSettings(TargetSettings):
    """The model's own class without the plan's layers, a draft model; nothing can be set."""

    kind: Literal["cut"] = "cut"


class Cut(Target):
    """See `Target` for what each member promises."""

    settings = CutSettings
    model_types = ("llama", "mistral", "qwen2", "qwen3")
    goes: ClassVar[tuple[Component, ...]] = (Component.ATTENTION, Component.MLP)
    keeps = 1
    keeps_because = "a model has at least one layer"

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Other classes of models than those whose layers are known to stand each for itself."""
        kind = config.get_text_config().model_type
        if kind in self.model_types:
            return []
        return [f"another architecture than can be cut (model_type={kind!r}; {', '.join(self.model_types)})"]

    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """The source without the layers `replace`; the others are numbered anew."""
        network, gone = model.network, set(replace)
        kept = [layer for layer in range(model.anatomy.num_layers) if layer not in gone]
        places = {layer: place for place, layer in enumerate(kept)}
        source = {}
        for name, tensor in network.state_dict().items():
            layer, _, rest = name.removeprefix(_LAYERS).partition(".")
            if not name.startswith(_LAYERS):
                source[name] = tensor
            elif int(layer) in places:
                source[f"{_LAYERS}{places[int(layer)]}.{rest}"] = tensor
        return assemble(
            type(network),
            student_config(network.config, kept),
            source,
            lambda name: (name,),
            new=(),
            dropped=(),
            share=share,
        )


def student_config(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """The source's config with the layers `kept`, in order, and what it says of each."""
    student = copy.deepcopy(config)
    student.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        student.layer_types = [config.layer_types[layer] for layer in kept]
    if getattr(config, "max_window_layers", None) is not None:  # as many from the bottom have no sliding window
        student.max_window_layers = sum(layer < config.max_window_layers for layer in kept)
    return student
