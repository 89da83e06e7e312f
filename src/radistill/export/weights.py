"""The weights of a model folder, one by one, so that an export needs memory for the largest only."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from radistill.conversion.targets import gguf_formats, target_of
from radistill.conversion.targets.interface import weight_shapes
from radistill.errors import RadistillError
from radistill.models.checkpoint import check_weights


def find_weights(folder: Path, config: PreTrainedConfig) -> dict[str, Path]:
    """The file that holds each weight, by name.

    Raises:
        RadistillError: if a file is missing or damaged, or a student's weight is missing or has another shape than its
            config asks for.
    """
    found: dict[str, Path] = {}
    for path in check_weights(folder):
        with safe_open(path, framework="pt") as handle:
            found |= dict.fromkeys(handle.keys(), path)
    for name, wanted in _shapes(config).items():
        if name not in found:
            some = next(iter(found.values())).parent if found else "the model"
            raise RadistillError(f"{some}: {name} is missing")
        shape = list(shape_of(name, found[name]).shape)
        if shape != wanted:
            raise RadistillError(f"{found[name]}: {name} has shape {shape}, but config.json asks for {wanted}")
    return dict(sorted(found.items()))


def _shapes(config: PreTrainedConfig) -> dict[str, list[int]]:
    """What an architecture that is known here stores; empty for others."""
    if (target := target_of(config)) is not None:
        return target.weight_shapes(config)
    return weight_shapes(config) if config.model_type in gguf_formats() else {}


def shape_of(name: str, path: Path) -> Tensor:
    """A weight without its numbers, on the meta device."""
    with safe_open(path, framework="pt") as handle:
        return torch.empty(handle.get_slice(name).get_shape(), device="meta")


def read_weight(name: str, path: Path) -> Tensor:
    """A weight."""
    with safe_open(path, framework="pt") as handle:
        tensor: Tensor = handle.get_tensor(name)
    return tensor
