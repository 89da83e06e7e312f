"""Which components a decoder has, by the table of `models.architectures`, which names them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.errors import RadistillError
from radistill.models.architectures import ARCHITECTURES, Architecture
from radistill.models.checkpoint import one_line


class Component(StrEnum):
    """A part of a decoder layer that a draft can skip, because the residual stream goes round it."""

    ATTENTION = "attention"
    SSM = "ssm"
    MLP = "mlp"


_MOST_LAYERS = 10_000
# What layers of the types in config.layer_types have besides an MLP; transformers renamed "mamba" in its version 5.
_LAYER_TYPES: dict[str, tuple[Component, ...]] = {
    **dict.fromkeys(("mamba", "linear_attention", "conv"), (Component.SSM,)),
    **dict.fromkeys(("attention", "full_attention", "sliding_attention"), (Component.ATTENTION,)),
    "hybrid": (Component.ATTENTION, Component.SSM),
    "mlp": (),
    "moe": (),
}


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
        for place in (path, f"{outer}.language_model.{inner}", f"{outer}.text_model.{inner}"):
            layers = _submodule(network, place)
            if isinstance(layers, nn.ModuleList):
                return layers
        raise RadistillError(f"{type(network).__name__} has its layers elsewhere than at {path}, so it is not known")

    def modules(self, network: nn.Module, layer: int, component: Component) -> list[nn.Module]:
        """The modules that make up a component of one layer; empty if the layer has none.

        The residual stream receives the sum of their outputs, so skipping the component means zeros from each.
        """
        entry, block = self.architecture, self.layers(network)[layer]
        attention = (entry.attention,) if layer in self.attention_layers else ()
        ssm = entry.ssm if layer in self.ssm_layers else ()
        mlp = tuple(path for path in entry.mlp if path not in attention + ssm)
        paths = {Component.ATTENTION: attention, Component.SSM: ssm, Component.MLP: mlp}[component]
        return [module for path in paths if (module := _submodule(block, path)) is not None]

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
            module, _, kind = name.rpartition(".")
            parts = next(
                (parts for path, parts in self.architecture.fused.items() if module.endswith(f".{path}")), None
            )
            if parts is None:
                found[name] = tensor
            else:
                around = module.rpartition(".")[0]
                found |= {f"{around}.{part}.{kind}": rows for part, rows in self._split(tensor, parts).items()}
        return found

    def _split(self, tensor: Tensor, parts: tuple[str, ...]) -> dict[str, Tensor]:
        """The rows of a fused weight or bias by the part that they belong to."""
        keys = self.num_kv_heads * self.head_dim
        rows = {"q_proj": self.num_heads * self.head_dim, "k_proj": keys, "v_proj": keys}
        sizes = [rows.get(part, len(tensor) // len(parts)) for part in parts]
        return dict(zip(parts, tensor.split(sizes), strict=True))

    def kv_bytes_per_token(self, bytes_per_number: int = 2, layers: Collection[int] | None = None) -> int:
        """Bytes by which the KV cache of one sequence grows per token, over all layers or these (2 = bfloat16)."""
        return bytes_per_number * sum(self.cached if layers is None else (self.cached[layer] for layer in layers))

    def kv_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes of the KV cache of one sequence of `tokens`; a sliding window stops the growth of its layers."""
        windowed = min(tokens, self.sliding_window) if self.sliding_window is not None else tokens
        within = self.kv_bytes_per_token(bytes_per_number, self.sliding_layers)
        return (self.kv_bytes_per_token(bytes_per_number) - within) * tokens + within * windowed

    def ssm_state_bytes(self) -> int:
        """Bytes in float32 of recurrent and convolution state of one sequence, over all layers, at any length."""
        return len(self.ssm_layers) * self.ssm_state_size * 4

    def cache_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes of keys, values and states of one sequence of `tokens`."""
        return self.kv_bytes(tokens, bytes_per_number) + self.ssm_state_bytes()

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
    for layer, kind in enumerate(types):
        if kind not in _LAYER_TYPES:
            raise RadistillError(
                f"config.json: layer_types[{layer}] is {kind!r}, which is none of {', '.join(sorted(_LAYER_TYPES))}"
            )
    attention = tuple(layer for layer in everything if Component.ATTENTION in _LAYER_TYPES[types[layer]])
    return attention, tuple(layer for layer in everything if Component.SSM in _LAYER_TYPES[types[layer]])


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
