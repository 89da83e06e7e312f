"""A network on another device for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def placed(network: PreTrainedModel, device: str | None) -> Iterator[None]:
    """Within the block, the network is on that device; None leaves it where it is."""
    before, module = network.device, cast(nn.Module, network)
    module.to(device or before)
    try:
        yield
    finally:
        module.to(before)
