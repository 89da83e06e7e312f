"""A network in another mode for the time of a block: trained in parts, elsewhere, or computing twice."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def training_only(network: PreTrainedModel, names: Collection[str]) -> Iterator[None]:
    """Within the block, the network is in training mode, and gradients flow to the parameters of these names alone.

    No parameter brings a gradient along, or takes one away.
    """
    training, parameters = network.training, dict(network.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    network.train()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    try:
        yield
    finally:
        network.train(training)
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextmanager
def placed(network: PreTrainedModel, device: str | None) -> Iterator[None]:
    """Within the block, the network is on that device; None leaves it where it is."""
    before, module = network.device, cast(nn.Module, network)
    module.to(device or before)
    try:
        yield
    finally:
        module.to(before)


@contextmanager
def recomputing(network: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Within the block, only the inputs of layers are kept for the backward, if that is wanted: gradient checkpointing.

    It costs a second forward of each layer.
    """
    if not wanted:
        yield
        return
    # transformers 5.24 renamed it, and warns about the old name.
    renamed = hasattr(network, "activation_checkpointing_enable")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    switch: Any = network
    getattr(switch, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(switch, f"{name}_disable")()
