"""Computing in bfloat16 while what is trained stays in float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from radistill.models.loading import DTYPES

Precision = Literal["bfloat16"]
"""Number formats to compute in, where it is not that of the weights."""


def computing(precision: Precision | None, device: torch.device) -> AbstractContextManager[None]:
    """Within the block, matrix products run in that format, and what needs more range in float32, as torch chooses.

    This is torch's autocast. Trainer's own `bf16` would put it around the student only, and leave the student's
    forward wrapped.
    """
    return nullcontext() if precision is None else torch.autocast(device.type, DTYPES[precision])


@contextmanager
def master_weights(network: nn.Module, precision: Precision | None) -> Iterator[None]:
    """Within the block, what is trained is in float32, so that an update that is small beside its weight is not lost.

    Frozen weights keep their format. Afterwards every weight is in the format in which it came.

    Args:
        network: its parameters' `requires_grad` say what is trained.
        precision: None leaves all weights as they are.
    """
    formats = {parameter: parameter.dtype for parameter in network.parameters() if parameter.requires_grad}
    if precision is None:
        formats = {}
    for parameter in formats:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in formats.items():
            parameter.grad = None  # its format is that of training
            parameter.data = parameter.data.to(dtype)
