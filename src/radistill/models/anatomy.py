"""Which components a decoder has, and what an architecture calls them.

This is the only place that knows names of parts. A new source architecture is one entry in `ARCHITECTURES`; the
tests run over every entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.errors import RadistillError
from radistill.mixers.gdn import GDN
from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2 import MAMBA2
from radistill.mixers.mamba2.geometry import Mamba2Geometry
from radistill.models.checkpoint import one_line


class Component(StrEnum):
    """A part of a decoder layer that a draft can skip, because the residual stream goes round it."""

    ATTENTION = "attention"
    SSM = "ssm"
    MLP = "mlp"


@dataclass(frozen=True)
class Architecture:
    """How one transformers model type names its parts.

    Attributes:
        attention: path from a decoder layer to its attention.
        ssm: the same for a state-space block; each layer has at most one of these. Empty if the architecture has none.
        mlp: paths of what together is the MLP; their outputs are added. A path that a layer lacks is skipped.
        layers: path from the causal language model to its list of decoder layers.
        window: whether the model applies `config.sliding_window` to "all" layers, to those that `config.layer_types`
            calls "sliding_attention" ("some"), or ignores the field ("none").
        peculiarities: what the architecture always computes differently from Llama, in words for a refusal.
        mixer: what its state-space blocks are, where they are of a kind that we know.
        state: numbers in the recurrent state of one of its state-space blocks, where we do not.
        published: names of layer types that its published checkpoints have in place of transformers'.
    """

    attention: str = "self_attn"
    ssm: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ("mlp",)
    layers: str = "model.layers"
    window: str = "none"
    peculiarities: tuple[str, ...] = ()
    mixer: Mixer | None = None
    state: Callable[[PreTrainedConfig], int] | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    def state_numbers(self, config: PreTrainedConfig) -> int:
        """Numbers that one state-space block remembers of one sequence; 0 where there is no such block."""
        if self.mixer is not None:
            return self.mixer.geometry(config).state_numbers
        return 0 if self.state is None else self.state(config)


def _zamba2_state(config: PreTrainedConfig) -> int:
    """Mamba-2 under names of its own."""
    heads, size, groups = config.n_mamba_heads, config.mamba_headdim, config.mamba_ngroups
    shape = Mamba2Geometry(heads, size, groups, config.mamba_d_state, config.mamba_expand, config.mamba_d_conv)
    return shape.state_numbers


def _mamba1_state(config: PreTrainedConfig) -> int:
    return config.mamba_expand * config.hidden_size * (config.mamba_d_state + config.mamba_d_conv)


_HYBRID = "a hybrid of another kind"

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(window="all"),
    "qwen2": Architecture(window="some"),
    "granite": Architecture(),
    "granitemoehybrid": Architecture(
        ssm=("mamba",),
        mlp=("block_sparse_moe", "shared_mlp"),
        mixer=MAMBA2,
        # transformers reads both spellings, vLLM up to 0.25 and llama.cpp's converter only that of IBM's checkpoints.
        published={"linear_attention": "mamba", "full_attention": "attention"},
    ),
    # Known so that they can be inspected and diagnosed, and refused by name where they cannot be converted.
    "gemma2": Architecture(
        window="some",
        peculiarities=("norms after attention and MLP", "norm weights stored minus one", "embeddings scaled by width"),
    ),
    "mixtral": Architecture(window="all"),
    "olmo2": Architecture(peculiarities=("QK-norm", "norms after attention and MLP instead of before")),
    "phi3": Architecture(window="all", peculiarities=("fused projections (qkv_proj, gate_up_proj)",)),
    "qwen2_moe": Architecture(window="some"),
    "qwen3": Architecture(window="some", peculiarities=("QK-norm",)),
    "qwen3_moe": Architecture(window="all", peculiarities=("QK-norm",)),
    "smollm3": Architecture(window="some"),
    # Hybrids from elsewhere: their components can be masked, but the target computes its blocks differently.
    "bamba": Architecture(ssm=("mamba",), mlp=("feed_forward",), peculiarities=(_HYBRID,), mixer=MAMBA2),
    "falcon_h1": Architecture(
        ssm=("mamba",),
        mlp=("feed_forward",),
        peculiarities=(_HYBRID, "attention and state space in one layer"),
        mixer=MAMBA2,
    ),
    "jamba": Architecture(
        ssm=("mamba",), mlp=("feed_forward",), peculiarities=(_HYBRID, "Mamba-1 blocks"), state=_mamba1_state
    ),
    "qwen3_5_text": Architecture(
        ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", "QK-norm"), mixer=GDN
    ),
    "qwen3_5_moe_text": Architecture(
        ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", "QK-norm"), mixer=GDN
    ),
    "qwen3_next": Architecture(ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", "QK-norm"), mixer=GDN),
    "zamba2": Architecture(
        attention="shared_transformer.self_attn",
        ssm=("mamba", "mamba_decoder.mamba"),
        mlp=("shared_transformer.feed_forward",),
        peculiarities=(_HYBRID, "attention blocks shared between layers"),
        state=_zamba2_state,
    ),
}

_MOST_LAYERS = 10_000
# Names that config.layer_types uses for a state-space layer; transformers renamed "mamba" in its version 5.
_SSM_LAYER_TYPES = {"mamba", "linear_attention"}
_ATTENTION_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}
_BOTH_LAYER_TYPES = {"hybrid"}


@dataclass(frozen=True)
class Anatomy:
    """The shape of a decoder, and access to its parts.

    Attributes:
        model_type: transformers' name of the architecture, a key of `ARCHITECTURES`.
        head_dim: size of one attention head.
        attention_layers: indices of the layers that have attention, ascending.
        ssm_layers: indices of the layers that have a state-space block, ascending; a layer may have both.
        sliding_window: number of tokens that the attention of `sliding_layers` can see; None if all see everything.
        sliding_layers: indices of the layers whose attention is limited to the window.
        ssm_state_size: numbers in the recurrent state and in the convolution's memory of one state-space layer.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    attention_layers: tuple[int, ...]
    ssm_layers: tuple[int, ...]
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    ssm_state_size: int = 0

    @property
    def architecture(self) -> Architecture:
        """The table entry that names the parts."""
        return ARCHITECTURES[self.model_type]

    def layers(self, network: nn.Module) -> nn.ModuleList:
        """The decoder layers of `network`, in order."""
        layers = network.get_submodule(self.architecture.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def modules(self, network: nn.Module, layer: int, component: Component) -> list[nn.Module]:
        """The modules that make up a component of one layer; empty if the layer has none.

        The residual stream receives the sum of their outputs, so skipping the component means zeros from each.
        """
        entry = self.architecture
        paths: dict[Component, tuple[str, ...]] = {
            Component.ATTENTION: (entry.attention,),
            Component.SSM: entry.ssm,
            Component.MLP: entry.mlp,
        }
        block = self.layers(network)[layer]
        found = (_submodule(block, path) for path in paths[component])
        return [module for module in found if module is not None]

    def mixer(self, network: nn.Module, layer: int) -> nn.Module:
        """The module that mixes tokens in one layer: its attention or, where it has none, its state-space block."""
        component = Component.ATTENTION if layer in self.attention_layers else Component.SSM
        (module,) = self.modules(network, layer, component)
        return module

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes by which the KV cache of one sequence grows per token, over all attention layers (2 = bfloat16)."""
        return len(self.attention_layers) * self._kv_numbers() * bytes_per_number

    def kv_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes of the KV cache of one sequence of `tokens`; a sliding window stops the growth of its layers."""
        windowed = min(tokens, self.sliding_window) if self.sliding_window is not None else tokens
        full = len(self.attention_layers) - len(self.sliding_layers)
        return (full * tokens + len(self.sliding_layers) * windowed) * self._kv_numbers() * bytes_per_number

    def ssm_state_bytes(self, bytes_per_number: int = 4) -> int:
        """Bytes of recurrent and convolution state of one sequence, over all state-space layers, at any length."""
        return len(self.ssm_layers) * self.ssm_state_size * bytes_per_number

    def parameters(self, network: PreTrainedModel) -> dict[str, int]:
        """Number of parameters by component: attention, ssm, mlp, embedding (input and output), other.

        Each parameter counts once, so that tied weights do; the values add up to all parameters of `network`.
        """
        owner: dict[int, str] = {}
        for embedding in (network.get_input_embeddings(), network.get_output_embeddings()):
            if embedding is not None:
                owner |= {id(parameter): "embedding" for parameter in embedding.parameters()}
        for layer in range(self.num_layers):
            for component in Component:
                for module in self.modules(network, layer, component):
                    owner |= {id(parameter): str(component) for parameter in module.parameters()}
        counts = {**{str(component): 0 for component in Component}, "embedding": 0, "other": 0}
        for parameter in network.parameters():
            counts[owner.get(id(parameter), "other")] += parameter.numel()
        return counts

    def _kv_numbers(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim


def anatomy_of(source: PreTrainedModel | PreTrainedConfig) -> Anatomy:
    """Anatomy of a network, or of the network that a config describes.

    Raises:
        RadistillError: if the architecture, or one of its layer types, is not known, or the sizes cannot be.
    """
    config = source if isinstance(source, PreTrainedConfig) else source.config
    config = config.get_text_config()
    known = ", ".join(ARCHITECTURES)
    if config.model_type not in ARCHITECTURES:
        raise RadistillError(f"config.json: model_type {config.model_type!r} is not an architecture we know ({known})")
    try:
        return _anatomy(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        where = Path(config.name_or_path or "") / "config.json"
        raise RadistillError(f"{where}: its sizes cannot be those of a network ({one_line(error)})") from None


def _anatomy(config: PreTrainedConfig) -> Anatomy:
    if config.num_hidden_layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {config.num_hidden_layers}")
    entry = ARCHITECTURES[config.model_type]
    attention, ssm = _split_layers(config, entry)
    window, windowed = _sliding(config, entry, attention)
    heads = config.num_attention_heads
    return Anatomy(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        attention_layers=attention,
        ssm_layers=ssm,
        sliding_window=window,
        sliding_layers=windowed,
        ssm_state_size=entry.state_numbers(config) if ssm else 0,
    )


def _split_layers(config: PreTrainedConfig, entry: Architecture) -> tuple[tuple[int, ...], tuple[int, ...]]:
    everything = tuple(range(config.num_hidden_layers))
    if not entry.ssm:
        return everything, ()
    types = list(config.layer_types)
    if len(types) != len(everything):
        raise RadistillError(
            f"config.json: layer_types has {len(types)} entries, but num_hidden_layers is {len(everything)}"
        )
    allowed = _SSM_LAYER_TYPES | _ATTENTION_LAYER_TYPES | _BOTH_LAYER_TYPES
    for layer, kind in enumerate(types):
        if kind not in allowed:
            raise RadistillError(
                f"config.json: layer_types[{layer}] is {kind!r}, which is none of {', '.join(sorted(allowed))}"
            )
    attention = tuple(layer for layer in everything if types[layer] not in _SSM_LAYER_TYPES)
    return attention, tuple(layer for layer in everything if types[layer] not in _ATTENTION_LAYER_TYPES)


def _sliding(
    config: PreTrainedConfig, entry: Architecture, attention: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...]]:
    """The window and the layers that it limits; a window that is never shorter than the context limits none."""
    window = getattr(config, "sliding_window", None)
    if entry.window == "none" or window is None or window >= config.max_position_embeddings:
        return None, ()
    layers = attention
    if entry.window == "some":
        types = config.layer_types
        layers = tuple(layer for layer in attention if types[layer] == "sliding_attention")
    return (window, layers) if layers else (None, ())


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
