"""How llama.cpp's `qwen35` wants a `qwen3_5_text` model: settings, tensors, and what it cannot do."""

from typing import Any

import gguf
from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.conversion.targets.plain_gguf import GGUFFormat, Piece, head_size, rope_of
from radistill.mixers.gdn import gguf as gdn
from radistill.mixers.gdn.geometry import GDNGeometry

_BLOCK = "linear_attn."


class _Qwen35Format(GGUFFormat):
    def obstacles(self, config: PreTrainedConfig) -> list[str]:
        if config.model_type != "qwen3_5_text":
            return [f"mixture of experts (num_experts={config.num_experts})"]
        found = super().obstacles(config)
        if "linear_attention" in config.layer_types:
            return found + gdn.obstacles(GDNGeometry.of(config))
        return [*found, "no linear layer (a GGUF of the source model is what you want)"]

    def unread(self, rope: dict[str, Any]) -> list[str]:
        return [name for name in super().unread(rope) if name != "partial_rotary_factor" and "mrope" not in name]

    def write_settings(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        super().write_settings(writer, config)
        recurrent = [kind == "linear_attention" for kind in config.layer_types]
        writer.add_array(f"{gguf.MODEL_ARCH_NAMES[self.architecture]}.attention.recurrent_layers", recurrent)
        gdn.write_settings(writer, GDNGeometry.of(config))
        # Text has one position in all sections, so that any split is the same; llama.cpp wants one that fits the head.
        rotated = int(head_size(config) * rope_of(config).get("partial_rotary_factor", 1.0))
        third = rotated // 6
        writer.add_rope_dimension_sections([rotated // 2 - 2 * third, third, third, 0])

    def pieces(self, part: str, tensor: Tensor, config: PreTrainedConfig) -> list[Piece]:
        if part.startswith(_BLOCK):
            return gdn.translate(part.removeprefix(_BLOCK), tensor, GDNGeometry.of(config))
        if part.endswith("norm.weight"):
            tensor = tensor + 1  # llama.cpp multiplies by the weight itself
        return super().pieces(part, tensor, config)


FORMAT = _Qwen35Format(MODEL_ARCH.QWEN35, biased=False, float32=gdn.FLOAT32)
