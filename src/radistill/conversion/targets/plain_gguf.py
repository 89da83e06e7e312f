"""How llama.cpp wants models: plain Transformers, such as a drafter beside its target, and what hybrids share."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radistill.errors import RadistillError

ROTARY_DIVISORS = f"{gguf.TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight"

# What each kind of rotary scaling may say besides its kind and the base.
_SCALINGS = {
    "default": set[str](),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}

# Kind, what its name ends with, and form of a tensor in the file.
Piece = tuple[MODEL_TENSOR, str, Tensor]


@dataclass(frozen=True)
class GGUFFormat:
    """How llama.cpp wants the models of one of its architectures. This class itself is for plain Transformers.

    Attributes:
        architecture: which.
        scalings: the kinds of rotary scaling that it computes. `llama3` goes by a tensor of divisors.
        neighbours: whether it rotates entries 2i and 2i+1 of a head together, where transformers rotates i and
            i + size/2.
        biased: whether its attention may have biases that the config turns on.
        float32: kinds of matrices that are never stored in fewer bits.
    """

    architecture: MODEL_ARCH
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    neighbours: bool = False
    biased: bool = True
    float32: tuple[MODEL_TENSOR, ...] = ()

    def obstacles(self, config: PreTrainedConfig) -> list[str]:
        """Features of a model that this architecture cannot compute, by name; empty if it can hold it."""
        found, rope = [], rope_of(config)
        kind = rope["rope_type"]
        if kind not in self.scalings:
            found.append(f"rotary scaling of type {kind} (only {', '.join(self.scalings)})")
        elif unread := self.unread(rope):
            found.append(f"{unread[0]}={rope[unread[0]]} in the rotary positions")
        if config.hidden_act != "silu":
            found.append(f"activation {config.hidden_act} (hidden_act; only silu)")
        if not self.biased and getattr(config, "attention_bias", False):
            found.append("biases in attention (attention_bias=True)")
        window = getattr(config, "sliding_window", None)
        if window is not None and window < config.max_position_embeddings:
            found.append(f"a sliding window (sliding_window={window})")
        return found

    def unread(self, rope: dict[str, Any]) -> list[str]:
        """Rotary parameters that have no place in a file of this architecture."""
        return sorted(rope.keys() - {"rope_type", "rope_theta"} - _SCALINGS[rope["rope_type"]])

    def write_settings(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        """Add the model's sizes, multipliers, positions and kinds of layers to the metadata."""
        write_sizes(writer, config)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
        self.write_positions(writer, config)

    def write_positions(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        """Add the rotary base and its scaling to the metadata."""
        rope = rope_of(config)
        rotated = int(head_size(config) * rope.get("partial_rotary_factor", 1.0))
        writer.add_rope_dimension_count(rotated)
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] in ("linear", "yarn"):
            writer.add_rope_scaling_type(RopeScalingType[rope["rope_type"].upper()])
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] != "yarn":
            return
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if (stretch := rope.get("attention_factor")) is not None:
            # llama.cpp multiplies YaRN's own factor by it.
            writer.add_rope_scaling_attn_factors(stretch / (1.0 + 0.1 * math.log(rope["factor"])))
        if (fast := rope.get("beta_fast")) is not None:
            writer.add_rope_scaling_yarn_beta_fast(fast)
        if (slow := rope.get("beta_slow")) is not None:
            writer.add_rope_scaling_yarn_beta_slow(slow)

    def extra(self, config: PreTrainedConfig) -> dict[str, Tensor]:
        """Tensors of the file, by name, that no weight holds: divisors of rotary frequencies that are scaled each."""
        if rope_of(config)["rope_type"] != "llama3":
            return {}
        return {ROTARY_DIVISORS: rotary_divisors(config)[0]}

    def translate(self, name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
        """The tensors of the file, by name, that hold one weight of the folder.

        Args:
            name: the weight's.
            tensor: the weight, or its shape on the meta device.
            config: the model's.

        Raises:
            RadistillError: for a weight that has no place in this architecture.
        """
        layer, part = "0", name
        if name.startswith("model.layers."):
            _, _, layer, part = name.split(".", 3)
        pieces = self.pieces(part, tensor, config)
        if not pieces:
            architecture = gguf.MODEL_ARCH_NAMES[self.architecture]
            raise RadistillError(
                f"{name}: llama.cpp's {architecture} has no place for this weight, so this model has no GGUF"
            )
        return {gguf.TENSOR_NAMES[kind].format(bid=layer) + suffix: value for kind, suffix, value in pieces}

    def pieces(self, part: str, tensor: Tensor, config: PreTrainedConfig) -> list[Piece]:
        """As `translate`, for a weight as it is called within its layer; nothing for one that has no place."""
        stem, _, suffix = part.rpartition(".")
        names = _names(self.architecture)
        kind = names.get_type(f"model.layers.0.{stem}") or names.get_type(stem)
        if kind is None:
            return []
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if stem in heads and self.neighbours and rotates(config):
            tensor = rotary_pairs(tensor, heads[stem])
        return [(kind, f".{suffix}", tensor)]


@cache
def _names(kind: MODEL_ARCH) -> gguf.TensorNameMap:
    """llama.cpp's names by transformers'; what a layer's parts are called does not depend on its number."""
    return gguf.get_tensor_name_map(kind, 1)


def rotary_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (or its bias) for llama.cpp's rotation.

    transformers rotates entry i of a head together with entry i + size/2, llama.cpp entries 2i and 2i+1. The scores are
    the same when queries and keys are reordered alike.
    """
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def rotary_divisors(config: PreTrainedConfig) -> tuple[Tensor, float]:
    """By what transformers divides each rotary frequency, where they are scaled, and its factor of queries and keys."""
    rope = rope_of(config)
    scaled, stretch = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    size = head_size(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled.double()).float(), float(stretch)


def rope_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's rotary parameters, with the defaults of what it leaves out."""
    said = config.rope_parameters if rotates(config) else None
    return {"rope_type": "default", "rope_theta": 10000.0} | dict(said or {})


def rotates(config: PreTrainedConfig) -> bool:
    """Whether a model has rotary positions; Granite's hybrids may have none."""
    return getattr(config, "position_embedding_type", "rope") == "rope"


def head_size(config: PreTrainedConfig) -> int:
    """Channels of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_sizes(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the sizes that every architecture has to the metadata."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.num_attention_heads)


_LLAMA = GGUFFormat(MODEL_ARCH.LLAMA, ("default", "linear", "yarn", "llama3"), neighbours=True)

FORMATS: dict[str, GGUFFormat] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GGUFFormat(MODEL_ARCH.QWEN2),
    "qwen3": GGUFFormat(MODEL_ARCH.QWEN3, biased=False),
}
"""By transformers' model type."""
