"""The weights of a model folder, one by one, so that an export needs memory for the largest only."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from radistill.errors import RadistillError
from radistill.models.checkpoint import check_weights, quiet

# The model type of every student.
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
    for name, wanted in _expected_shapes(config).items():
        if name not in found:
            some = next(iter(found.values())).parent if found else "the model"
            raise RadistillError(f"{some}: {name} is missing")
        shape = list(shape_of(name, found[name]).shape)
        if shape != wanted:
            raise RadistillError(f"{found[name]}: {name} has shape {shape}, but config.json asks for {wanted}")


def _expected_shapes(config: PreTrainedConfig) -> dict[str, list[int]]:
    with torch.device("meta"), quiet():
        network = AutoModelForCausalLM.from_config(config)
    # Experts have other names in memory than in a file, and those in memory differ by version of transformers.
    expected = {
        name: list(tensor.shape) for name, tensor in network.state_dict().items() if ".block_sparse_moe." not in name
    }
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    experts, inner, width = config.num_local_experts, config.intermediate_size, config.hidden_size
    for layer in range(config.num_hidden_layers if experts else 0):
        prefix = f"model.layers.{layer}.block_sparse_moe"
        expected[f"{prefix}.input_linear.weight"] = [experts, 2 * inner, width]
        expected[f"{prefix}.output_linear.weight"] = [experts, width, inner]
        expected[f"{prefix}.router.layer.weight"] = [experts, width]
    return expected
