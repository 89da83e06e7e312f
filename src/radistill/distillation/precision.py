"""Computing in a half-precision format while what is trained stays in float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["bfloat16", "weights"]
"""What a recipe can say of number formats, besides nothing; see `TrainingSettings.precision`."""


def compute_format(precision: Precision | None, weights: torch.dtype) -> torch.dtype | None:
    """The format to compute in, beside float32 weights, for a network loaded in the format `weights`.

    None where the weights themselves say it.
    """
    if precision is None:
        return weights if _is_half(weights) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def computing(compute: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    """Within the block, matrix products run in that format, and what needs more range in float32, as torch chooses.

    This is torch's autocast; None is without.
    """
    return nullcontext() if compute is None else torch.autocast(device.type, compute)


@contextmanager
def master_weights(network: nn.Module, precision: Precision | None) -> Iterator[None]:
    """Within the block, what is trained is in float32, so that an update that is small beside its weight is not lost.

    Frozen weights keep their format. Afterwards every weight is in the format in which it came.

    Args:
        network: its parameters' `requires_grad` say what is trained.
        precision: "weights" leaves all weights as they are.
    """
    formats = {
        parameter: parameter.dtype
        for parameter in network.parameters()
        if parameter.requires_grad and _is_half(parameter.dtype) and precision != "weights"
    }
    for parameter in formats:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in formats.items():
            parameter.grad = None  # its format is that of training
            parameter.data = parameter.data.to(dtype)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize < torch.float32.itemsize
