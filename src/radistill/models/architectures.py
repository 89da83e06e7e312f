"""What each architecture of transformers calls the parts of a decoder.

This is the only place that knows names of parts. A new source architecture is one entry in `ARCHITECTURES`; the
tests run over every entry.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from radistill.mixers.gdn import GDN
from radistill.mixers.gdn.geometry import GDNGeometry
from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2 import MAMBA2
from radistill.mixers.mamba2.geometry import Mamba2Geometry


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


def _mamba2_state(*names: str) -> Callable[[PreTrainedConfig], int]:
    """Of Mamba-2 under names of its own: those of heads, head size, groups, state, expansion and convolution."""
    return lambda config: Mamba2Geometry(*(getattr(config, name) for name in names)).state_numbers


def _mamba1_state(config: PreTrainedConfig) -> int:
    return config.mamba_expand * config.hidden_size * (config.mamba_d_state + config.mamba_d_conv)


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
_QWEN_HYBRID = Architecture(ssm=("linear_attn",), peculiarities=(_HYBRID, "gated delta rule", _QK_NORM), mixer=GDN)

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
    "qwen2_5_vl_text": Architecture(window="some", peculiarities=("rotary embedding by time, height and width",)),
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
        state=_mamba2_state("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "expand", "conv_kernel"),
    ),
    "olmo_hybrid": Architecture(
        ssm=("linear_attn",),
        peculiarities=(_HYBRID, "gated delta rule", _QK_NORM, _POST_NORMS_ONLY),
        state=lambda config: GDNGeometry.of(config).state_numbers,
    ),
    "qwen3_5_text": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "qwen3_next": _QWEN_HYBRID,
    "zamba2": Architecture(
        attention="shared_transformer.self_attn",
        ssm=("mamba", "mamba_decoder.mamba"),
        mlp=("shared_transformer.feed_forward",),
        peculiarities=(_HYBRID, "attention blocks shared between layers"),
        state=_mamba2_state(
            "n_mamba_heads", "mamba_headdim", "mamba_ngroups", "mamba_d_state", "mamba_expand", "mamba_d_conv"
        ),
    ),
}
