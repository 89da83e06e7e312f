"""How llama.cpp wants plain Transformers, such as a drafter that is served beside its target."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.conversion.targets.granite_hybrid_gguf import ROTARY_DIVISORS, rope_of, rotary_divisors, rotary_pairs
from radistill.conversion.targets.interface import GGUFFormat
from radistill.errors import RadistillError

_YARN = {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"}
# What each kind of rotary scaling may say besides its kind and the base.
_SCALINGS = {
    "default": set[str](),
    "linear": {"factor"},
    "yarn": _YARN,
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


@dataclass(frozen=True)
class _Plain:
    """One of llama.cpp's architectures of plain Transformers.

    Attributes:
        kind: which.
        neighbours: whether it rotates entries 2i and 2i+1 of a head together, where transformers rotates i and
            i + size/2.
        scalings: the kinds of rotary scaling that it computes. `llama3` goes by a tensor of divisors.
        biased: whether its attention may have biases that the config turns on.
    """

    kind: MODEL_ARCH
    neighbours: bool
    scalings: tuple[str, ...]
    biased: bool

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.kind]

    def obstacles(self, config: PreTrainedConfig) -> list[str]:
        """Features of a model that this architecture cannot compute, by name."""
        found, rope = [], rope_of(config)
        kind = rope["rope_type"]
        unknown = sorted(rope.keys() - {"rope_type", "rope_theta"} - _SCALINGS.get(kind, set()))
        if kind not in self.scalings:
            found.append(f"rotary scaling of type {kind} (only {', '.join(self.scalings)})")
        elif unknown:
            found.append(f"{unknown[0]}={rope[unknown[0]]} in the rotary positions")
        if config.hidden_act != "silu":
            found.append(f"activation {config.hidden_act} (hidden_act; only silu)")
        if not self.biased and getattr(config, "attention_bias", False):
            found.append("biases in attention (attention_bias=True)")
        window = getattr(config, "sliding_window", None)
        if window is not None and window < config.max_position_embeddings:
            found.append(f"a sliding window (sliding_window={window})")
        return found

    def write_settings(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        """Add the model's sizes and positions to the metadata."""
        write_sizes(writer, config)
        writer.add_rope_dimension_count(_head_size(config))
        rope = rope_of(config)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        elif rope["rope_type"] == "yarn":
            self._write_yarn(writer, rope)

    def _write_yarn(self, writer: GGUFWriter, rope: Mapping[str, Any]) -> None:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if (stretch := rope.get("attention_factor")) is not None:
            # llama.cpp multiplies YaRN's own factor by it.
            own = 1.0 + 0.1 * math.log(rope["factor"])
            writer.add_rope_scaling_attn_factors(stretch / own)
        if (fast := rope.get("beta_fast")) is not None:
            writer.add_rope_scaling_yarn_beta_fast(fast)
        if (slow := rope.get("beta_slow")) is not None:
            writer.add_rope_scaling_yarn_beta_slow(slow)

    def extra(self, config: PreTrainedConfig) -> dict[str, Tensor]:
        """Divisors of the rotary frequencies, where they are scaled one by one."""
        if rope_of(config)["rope_type"] != "llama3":
            return {}
        return {ROTARY_DIVISORS: rotary_divisors(config, _head_size(config))[0]}

    def translate(self, name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
        """The GGUF tensor, by name, that holds one weight of the folder.

        Raises:
            RadistillError: for a weight that has no place in this architecture.
        """
        layer, part = "0", name
        if name.startswith("model.layers."):
            _, _, layer, part = name.split(".", 3)
            part = f"model.layers.0.{part}"
        stem, _, suffix = part.rpartition(".")
        kind = _names(self.kind).get_type(stem)
        if kind is None:
            raise RadistillError(
                f"{name}: llama.cpp's {self.name} has no place for this weight, so this model has no GGUF"
            )
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1])
        if heads is not None and self.neighbours:
            tensor = rotary_pairs(tensor, heads)
        return {f"{gguf.TENSOR_NAMES[kind].format(bid=layer)}.{suffix}": tensor}

    @property
    def format(self) -> GGUFFormat:
        """As an export asks for it."""
        return GGUFFormat(self.kind, (), self.obstacles, self.write_settings, self.extra, self.translate)


@cache
def _names(kind: MODEL_ARCH) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(kind, 1)


def write_sizes(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the sizes that every Transformer has to the metadata."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


_LLAMA = _Plain(MODEL_ARCH.LLAMA, neighbours=True, scalings=("default", "linear", "yarn", "llama3"), biased=True).format
_QWEN = ("default", "linear", "yarn")

FORMATS: dict[str, GGUFFormat] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _Plain(MODEL_ARCH.QWEN2, neighbours=False, scalings=_QWEN, biased=True).format,
    "qwen3": _Plain(MODEL_ARCH.QWEN3, neighbours=False, scalings=_QWEN, biased=False).format,
}
"""By transformers' model type."""
