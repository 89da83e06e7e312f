"""How llama.cpp's `qwen35` wants a `qwen3_5_text` model: settings, tensors, and what it cannot do."""

from typing import Any

import gguf
from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.conversion.targets.interface import GGUFFormat
from radistill.conversion.targets.plain_gguf import write_sizes
from radistill.errors import RadistillError
from radistill.mixers.gdn import gguf as gdn
from radistill.mixers.gdn.geometry import GDNGeometry

_BLOCK = "linear_attn."
_NAMES = gguf.get_tensor_name_map(MODEL_ARCH.QWEN35, 1)
# llama.cpp's names of the ways to scale rotary frequencies that it computes as transformers does.
_SCALINGS = {"default": RopeScalingType.NONE, "linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}


def _obstacles(config: PreTrainedConfig) -> list[str]:
    """Features of a model that llama.cpp's `qwen35` cannot compute, by name."""
    found = []
    if config.model_type != "qwen3_5_text":
        return [f"mixture of experts (num_experts={config.num_experts})"]
    if config.attention_bias:
        found.append("biases in attention (attention_bias=True)")
    if config.hidden_act != "silu":
        found.append(f"activation {config.hidden_act} (hidden_act; only silu)")
    kind = config.rope_parameters["rope_type"]
    if kind not in _SCALINGS:
        found.append(f"rotary scaling of type {kind} (only {', '.join(_SCALINGS)})")
    if "linear_attention" in config.layer_types:
        found += gdn.obstacles(GDNGeometry.of(config))
    else:
        found.append("no linear layer (a GGUF of the source model is what you want)")
    return found


def _write_settings(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Add the model's sizes, positions and kinds of layers to the metadata."""
    write_sizes(writer, config)
    recurrent = [kind == "linear_attention" for kind in config.layer_types]
    writer.add_array(f"{gguf.MODEL_ARCH_NAMES[MODEL_ARCH.QWEN35]}.attention.recurrent_layers", recurrent)
    gdn.write_settings(writer, GDNGeometry.of(config))
    _write_positions(writer, config.rope_parameters, config.head_dim)


def _write_positions(writer: GGUFWriter, rope: dict[str, Any], head_dim: int) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(rotated)
    # Text has one position in all sections, so that any split is the same; llama.cpp wants one that fits the head.
    third = rotated // 6
    writer.add_rope_dimension_sections([rotated // 2 - 2 * third, third, third, 0])
    if rope["rope_type"] == "default":
        return
    writer.add_rope_scaling_type(_SCALINGS[rope["rope_type"]])
    writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _translate(name: str, tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The GGUF tensors, by name, that hold one weight of the folder.

    Raises:
        RadistillError: for a weight that has no place in llama.cpp's `qwen35`.
    """
    layer, part = "0", name
    if name.startswith("model.layers."):
        _, _, layer, part = name.split(".", 3)
        if part.startswith(_BLOCK):
            translated = gdn.translate(part.removeprefix(_BLOCK), tensor, GDNGeometry.of(config))
            if translated is None:
                raise _no_place(name)
            kind, suffix, tensor = translated
            return {gguf.TENSOR_NAMES[kind].format(bid=layer) + suffix: tensor}
        part = f"model.layers.0.{part}"
    stem, _, suffix = part.rpartition(".")
    found: MODEL_TENSOR | None = _NAMES.get_type(stem)
    if found is None:
        raise _no_place(name)
    if stem.endswith("norm"):
        tensor = tensor + 1  # llama.cpp multiplies by the weight itself
    return {f"{gguf.TENSOR_NAMES[found].format(bid=layer)}.{suffix}": tensor}


def _no_place(name: str) -> RadistillError:
    return RadistillError(f"{name}: llama.cpp's qwen35 has no place for this weight, so this model has no GGUF")


FORMAT = GGUFFormat(
    architecture=MODEL_ARCH.QWEN35,
    float32=gdn.FLOAT32,
    obstacles=_obstacles,
    write_settings=_write_settings,
    extra=lambda config: {},
    translate=_translate,
)
