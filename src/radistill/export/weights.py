"""The weights of a model folder, one by one, so that an export needs memory for the largest only."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from radistill.errors import RadistillError
from radistill.models.checkpoint import check_weights, quiet

# The model type of every student: what its weights are called in a file is what they are called in the network.
STUDENT = "granitemoehybrid"


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
    if config.model_type == STUDENT:
        _check_shapes(found, config)
    return dict(sorted(found.items()))


def shape_of(name: str, path: Path) -> Tensor:
    """A weight without its numbers, on the meta device."""
    with safe_open(path, framework="pt") as handle:
        return torch.empty(handle.get_slice(name).get_shape(), device="meta")


def read_weight(name: str, path: Path) -> Tensor:
    """A weight."""
    with safe_open(path, framework="pt") as handle:
        tensor: Tensor = handle.get_tensor(name)
    return tensor


def _check_shapes(found: dict[str, Path], config: PreTrainedConfig) -> None:
    with torch.device("meta"), quiet():
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    for name, wanted in expected.items():
        if name not in found:
            some = next(iter(found.values())).parent if found else "the model"
            raise RadistillError(f"{some}: {name} is missing")
        shape = list(shape_of(name, found[name]).shape)
        if shape != list(wanted.shape):
            raise RadistillError(
                f"{found[name]}: {name} has shape {shape}, but config.json asks for {list(wanted.shape)}"
            )
