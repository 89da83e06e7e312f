"""In what type and bytes a GGUF file keeps its tensors."""

import gguf
import numpy as np
from gguf import MODEL_TENSOR, GGMLQuantizationType
from torch import Tensor

from radistill.errors import RadistillError

# What `--dtype` may name, and the type of matrices then. Vectors, norms and the scan's parameters stay float32.
TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}


def storage_type(
    name: str, tensor: Tensor, wanted: GGMLQuantizationType, float32: tuple[MODEL_TENSOR, ...]
) -> GGMLQuantizationType:
    """The type in which a GGUF tensor is stored: `wanted` for matrices, but for those of the kinds `float32`."""
    stem = name.removesuffix(".weight")
    always = {gguf.TENSOR_NAMES[kind].removeprefix("blk.{bid}.") for kind in float32}
    if tensor.dim() < 2 or stem.rpartition(".")[2] in always:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def stored_bytes(tensor: Tensor, kind: GGMLQuantizationType) -> int:
    """Bytes that a tensor takes in the file."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return tensor.numel() // block * size


def encode(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor as its storage type has them.

    Raises:
        RadistillError: if a value is NaN, infinite, or too large for float16.
    """
    values = tensor.float().contiguous().numpy()
    if not np.isfinite(values).all():
        raise RadistillError(f"{name}: holds NaN or infinite numbers, so this model is not exported")
    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise RadistillError(f"{name}: holds numbers that float16 cannot; take --dtype bfloat16 or float32")
    return gguf.quants.quantize(values, kind)
