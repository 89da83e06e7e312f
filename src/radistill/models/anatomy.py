"""Which components a decoder has, and what an architecture calls them.

This is the only place that knows names of parts. A new source architecture is one entry in `ARCHITECTURES`; the
tests run over every entry.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.errors import RadistillError
from radistill.mixers.gdn import GDN
from radistill.mixers.gdn.geometry import GDNGeometry
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
        ssm: the same for a state-space block, a linear attention or a short convolution; each layer has at most one of
            these. Empty if the architecture has none.
        mlp: paths of what together is the MLP; their outputs are added. A path that a layer lacks is skipped, and so is
            one that leads to the layer's attention or state-space block.
        layers: path from the causal language model to its list of decoder layers.
        window: whether the model applies `config.sliding_window` to "all" layers, to those that `config.layer_types`
            calls "sliding_attention" ("some"), or ignores the field ("none").
        peculiarities: what the architecture always computes differently from Llama, in words for a refusal.
        mixer: what its state-space blocks are, where they are of a kind that we know.
        state: numbers in the recurrent state of one of its state-space blocks, where we do not.
        fused: projections that are several of Llama's in one, by their path from a decoder layer, with the names of
            those, whose rows follow one another in that order.
        cached: numbers that the attention of each layer caches of a token, where they are not simply a key and a value
            for each key-value head.
        lenders: layers whose keys and values later layers read instead of their own.
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
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cached: Callable[[PreTrainedConfig], Collection[int]] | None = None
    lenders: Callable[[PreTrainedConfig], Collection[int]] = lambda config: ()
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


def _nemotron_state(config: PreTrainedConfig) -> int:
    """Mamba-2 under names of its own."""
    heads, size, groups = config.mamba_num_heads, config.mamba_head_dim, config.n_groups
    shape = Mamba2Geometry(heads, size, groups, config.ssm_state_size, config.expand, config.conv_kernel)
    return shape.state_numbers


def _kimi_state(config: PreTrainedConfig) -> int:
    inner = config.linear_num_heads * config.linear_head_dim
    return inner * config.linear_head_dim + 3 * inner * config.linear_conv_kernel_dim


def _latents(config: PreTrainedConfig) -> list[int]:
    """Multi-head latent attention caches what its keys and values are made from."""
    return [config.kv_lora_rank + config.qk_rope_head_dim] * config.num_hidden_layers


def _gemma4_cached(config: PreTrainedConfig) -> list[int]:
    """Layers with the whole context have heads of another size and number, and the last layers borrow their keys."""
    own = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    sizes = [2 * layer.num_key_value_heads * layer.head_dim for layer in own]
    return [0 if mode == "reuse" else size for size, mode in zip(sizes, config.kv_sharing_modes, strict=True)]


def _gemma4_lenders(config: PreTrainedConfig) -> list[int]:
    """Every kind of layer has one that keeps its keys, whether or not a later one of the kind borrows them."""
    kinds = list(zip(config.kv_sharing_modes, config.layer_types, strict=True))
    return [layer for layer, (mode, kind) in enumerate(kinds) if mode == "store" and ("reuse", kind) in kinds]


_HYBRID = "a hybrid of another kind"
_QK_NORM = "QK-norm"
_POST_NORMS = "norms after attention and MLP"
_POST_NORMS_ONLY = "norms after attention and MLP instead of before"
_NOPE_LAYERS = "no rotary embedding in layers without a window"
_NEIGHBOURS = "rotary embedding of neighbouring channels"
_SCALED_EMBEDDINGS = "embeddings scaled by width"
_QKV: dict[str, tuple[str, ...]] = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj")}
_GATE_UP: dict[str, tuple[str, ...]] = {"mlp.gate_up_proj": ("gate_proj", "up_proj")}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(window="all"),
    "qwen2": Architecture(window="some"),
    "granite": Architecture(),
    "phi3": Architecture(window="all", fused=_QKV | _GATE_UP),
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
        peculiarities=(_POST_NORMS, "norm weights stored minus one", _SCALED_EMBEDDINGS),
    ),
    "gemma3_text": Architecture(
        window="some",
        peculiarities=(
            _QK_NORM,
            _POST_NORMS,
            "norm weights stored minus one",
            _SCALED_EMBEDDINGS,
            "two rotary embeddings",
        ),
    ),
    "gemma4_text": Architecture(
        mlp=("mlp", "experts"),
        window="some",
        peculiarities=(
            "norms of queries, keys and values",
            _POST_NORMS,
            _SCALED_EMBEDDINGS,
            "two rotary embeddings",
            "a scale for each layer",
        ),
        cached=_gemma4_cached,
        lenders=_gemma4_lenders,
    ),
    "cohere2": Architecture(
        window="some",
        peculiarities=("attention and MLP side by side", "LayerNorm instead of RMS norm", _NEIGHBOURS, _NOPE_LAYERS),
    ),
    "glm": Architecture(fused=_GATE_UP, peculiarities=(_NEIGHBOURS,)),
    "glm4": Architecture(fused=_GATE_UP, peculiarities=(_POST_NORMS, _NEIGHBOURS)),
    "ministral": Architecture(window="some"),
    "ministral3": Architecture(window="all", peculiarities=("queries scaled by their position",)),
    "mixtral": Architecture(window="all"),
    "olmo2": Architecture(peculiarities=(_QK_NORM, _POST_NORMS_ONLY)),
    "olmo3": Architecture(window="some", peculiarities=(_QK_NORM, _POST_NORMS_ONLY)),
    "qwen2_moe": Architecture(window="some"),
    "qwen3": Architecture(window="some", peculiarities=(_QK_NORM,)),
    "qwen3_moe": Architecture(window="all", peculiarities=(_QK_NORM,)),
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
    "kimi_linear": Architecture(
        ssm=("self_attn",),
        peculiarities=(_HYBRID, "Kimi delta attention", "multi-head latent attention", "no rotary embedding"),
        state=_kimi_state,
        cached=_latents,
    ),
    "lfm2": Architecture(
        ssm=("conv",),
        mlp=("feed_forward",),
        peculiarities=(_HYBRID, "gated short convolutions", _QK_NORM),
        state=lambda config: config.hidden_size * config.conv_L_cache,
    ),
    "nemotron_h": Architecture(
        attention="mixer",
        ssm=("mixer",),
        mlp=("mixer",),
        peculiarities=(_HYBRID, "layers of one part each", "an MLP without a gate", "no rotary embedding"),
        state=_nemotron_state,
    ),
    "olmo_hybrid": Architecture(
        ssm=("linear_attn",),
        peculiarities=(_HYBRID, "gated delta rule", _QK_NORM, _POST_NORMS_ONLY),
        state=lambda config: GDNGeometry.of(config).state_numbers,
    ),
    "qwen3_5_text": Architecture(
        ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", _QK_NORM), mixer=GDN
    ),
    "qwen3_5_moe_text": Architecture(
        ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", _QK_NORM), mixer=GDN
    ),
    "qwen3_next": Architecture(ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", _QK_NORM), mixer=GDN),
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
_SSM_LAYER_TYPES = {"mamba", "linear_attention", "conv"}
_ATTENTION_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}
_BOTH_LAYER_TYPES = {"hybrid"}
_MLP_LAYER_TYPES = {"mlp", "moe"}


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
        cached: numbers that each layer adds to the KV cache of a sequence per token; 0 where it has no attention.
        lenders: indices of the layers whose keys and values later layers read.
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
    cached: tuple[int, ...] = ()
    lenders: tuple[int, ...] = ()

    @property
    def architecture(self) -> Architecture:
        """The table entry that names the parts."""
        return ARCHITECTURES[self.model_type]

    def layers(self, network: nn.Module) -> nn.ModuleList:
        """The decoder layers of `network`, in order; of one that sees images too, those of its text model."""
        path = self.architecture.layers
        outer, _, inner = path.partition(".")
        for place in (path, f"{outer}.language_model.{inner}"):
            layers = _submodule(network, place)
            if isinstance(layers, nn.ModuleList):
                return layers
        raise RadistillError(f"{type(network).__name__} has its layers elsewhere than at {path}, so it is not known")

    def modules(self, network: nn.Module, layer: int, component: Component) -> list[nn.Module]:
        """The modules that make up a component of one layer; empty if the layer has none.

        The residual stream receives the sum of their outputs, so skipping the component means zeros from each.
        """
        entry = self.architecture
        mixers = [entry.attention] * (layer in self.attention_layers) + [*entry.ssm] * (layer in self.ssm_layers)
        paths: dict[Component, tuple[str, ...]] = {
            Component.ATTENTION: (entry.attention,) if layer in self.attention_layers else (),
            Component.SSM: entry.ssm if layer in self.ssm_layers else (),
            Component.MLP: tuple(path for path in entry.mlp if path not in mixers),
        }
        block = self.layers(network)[layer]
        found = (_submodule(block, path) for path in paths[component])
        return [module for module in found if module is not None]

    def mixer(self, network: nn.Module, layer: int) -> nn.Module:
        """The module that mixes tokens in one layer: its attention or, where it has none, its state-space block."""
        component = Component.ATTENTION if layer in self.attention_layers else Component.SSM
        (module,) = self.modules(network, layer, component)
        return module

    def projections(self, network: nn.Module, layer: int) -> Any:
        """The attention of one layer with `q_proj`, `k_proj`, `v_proj` and `o_proj`, as `mixers.interface` asks for it.

        Where the model has them fused, these are linear layers whose weights and biases are views of its own.
        """
        (attention,) = self.modules(network, layer, Component.ATTENTION)
        views: dict[str, nn.Linear] = {}
        for path, parts in self.architecture.fused.items():
            where, _, name = path.rpartition(".")
            if where == self.architecture.attention:
                fused = attention.get_submodule(name)
                tensors = dict(fused.named_parameters())
                split = {kind: self._split(tensor.detach(), parts) for kind, tensor in tensors.items()}
                views |= {part: _linear({kind: rows[part] for kind, rows in split.items()}) for part in parts}
        return SimpleNamespace(o_proj=attention.o_proj, **views) if views else attention

    def unfused(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model, fused projections taken apart into views under Llama's names."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for path, parts in self.architecture.fused.items():
                before, fused, kind = name.rpartition(f"{path}.")
                if fused:
                    prefix = before + fused.removesuffix(f"{path.rpartition('.')[2]}.")
                    found |= {f"{prefix}{part}.{kind}": rows for part, rows in self._split(tensor, parts).items()}
                    break
            else:
                found[name] = tensor
        return found

    def _split(self, tensor: Tensor, parts: tuple[str, ...]) -> dict[str, Tensor]:
        """The rows of a fused weight or bias by the part that they belong to."""
        keys = self.num_kv_heads * self.head_dim
        rows = {"q_proj": self.num_heads * self.head_dim, "k_proj": keys, "v_proj": keys}
        sizes = [rows.get(part, len(tensor) // len(parts)) for part in parts]
        return dict(zip(parts, tensor.split(sizes), strict=True))

    def kv_bytes_per_token(self, bytes_per_number: int = 2, layers: Collection[int] | None = None) -> int:
        """Bytes by which the KV cache of one sequence grows per token, over all layers or these (2 = bfloat16)."""
        return bytes_per_number * sum(
            self.cached[layer] for layer in (range(self.num_layers) if layers is None else layers)
        )

    def kv_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes of the KV cache of one sequence of `tokens`; a sliding window stops the growth of its layers."""
        windowed = min(tokens, self.sliding_window) if self.sliding_window is not None else tokens
        within = self.kv_bytes_per_token(bytes_per_number, self.sliding_layers)
        return (self.kv_bytes_per_token(bytes_per_number) - within) * tokens + within * windowed

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
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        raise RadistillError(
            "config.json: use_bidirectional_attention is on, so this model reads texts and writes none"
        )
    entry = ARCHITECTURES[config.model_type]
    attention, ssm = _split_layers(config, entry)
    window, windowed = _sliding(config, entry, attention)
    first = _first_layer(config, entry)
    heads = config.num_attention_heads
    kv_heads = getattr(first, "num_key_value_heads", None) or heads
    # Latent attention has heads of several sizes; that of queries and keys is meant.
    head_dim = getattr(first, "qk_head_dim", None) or getattr(first, "head_dim", None) or config.hidden_size // heads
    cached = [2 * kv_heads * head_dim] * config.num_hidden_layers if entry.cached is None else entry.cached(config)
    return Anatomy(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        attention_layers=attention,
        ssm_layers=ssm,
        sliding_window=window,
        sliding_layers=windowed,
        ssm_state_size=entry.state_numbers(config) if ssm else 0,
        cached=tuple(numbers if layer in attention else 0 for layer, numbers in enumerate(cached)),
        lenders=tuple(entry.lenders(config)),
    )


def _first_layer(config: PreTrainedConfig, entry: Architecture) -> PreTrainedConfig:
    """The config that the first layer has: where layers differ in size, transformers has one for each."""
    if not getattr(config, "is_heterogeneous", False):
        return config
    if entry.cached is None:
        raise RadistillError(f"config.json: per_layer_config: no {config.model_type} with unequal layers is known")
    first: PreTrainedConfig = config.per_layer_config[0]
    return first


def _split_layers(config: PreTrainedConfig, entry: Architecture) -> tuple[tuple[int, ...], tuple[int, ...]]:
    everything = tuple(range(config.num_hidden_layers))
    if not entry.ssm:
        return everything, ()
    types = list(config.layer_types)
    if len(types) != len(everything):
        raise RadistillError(
            f"config.json: layer_types has {len(types)} entries, but num_hidden_layers is {len(everything)}"
        )
    allowed = _SSM_LAYER_TYPES | _ATTENTION_LAYER_TYPES | _BOTH_LAYER_TYPES | _MLP_LAYER_TYPES
    for layer, kind in enumerate(types):
        if kind not in allowed:
            raise RadistillError(
                f"config.json: layer_types[{layer}] is {kind!r}, which is none of {', '.join(sorted(allowed))}"
            )
    attention = tuple(layer for layer in everything if types[layer] in _ATTENTION_LAYER_TYPES | _BOTH_LAYER_TYPES)
    return attention, tuple(layer for layer in everything if types[layer] in _SSM_LAYER_TYPES | _BOTH_LAYER_TYPES)


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


def _linear(parameters: Mapping[str, Tensor]) -> nn.Linear:
    """A linear layer that holds these tensors themselves."""
    outputs, inputs = parameters["weight"].shape
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias="bias" in parameters)
    for kind, tensor in parameters.items():
        setattr(layer, kind, nn.Parameter(tensor, requires_grad=False))
    return layer
