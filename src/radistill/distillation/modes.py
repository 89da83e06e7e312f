"""A network in another mode for the time of a block: trained in parts, elsewhere, in other formats, compiled."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from radistill.errors import RadistillError
from radistill.models.anatomy import Anatomy, Component
from radistill.models.checkpoint import one_line

Precision = Literal["bfloat16", "weights"]
"""What a recipe can say of number formats, besides nothing; see `TrainingSettings.precision`."""


@contextmanager
def training_only(network: PreTrainedModel, names: Collection[str]) -> Iterator[None]:
    """Within the block, the network is in training mode, and gradients flow to the parameters of these names alone.

    No parameter brings a gradient along, or takes one away.
    """
    training, parameters = network.training, dict(network.named_parameters())
    before = {name for name, parameter in parameters.items() if parameter.requires_grad}

    def train(mode: bool, flowing: Collection[str]) -> None:
        network.train(mode)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in flowing)
            parameter.grad = None

    train(True, names)
    try:
        yield
    finally:
        train(training, before)


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


# ---- formats: computing in a half-precision format while what is trained stays in float32 ----


def compute_format(precision: Precision | None, weights: torch.dtype) -> torch.dtype | None:
    """The format to compute in, beside float32 weights, for a network loaded in the format `weights`.

    None where the weights themselves say it.
    """
    if precision is None:
        return weights if is_half(weights) else None
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
        if parameter.requires_grad and is_half(parameter.dtype) and precision != "weights"
    }
    for parameter in formats:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in formats.items():
            parameter.grad = None  # its format is that of training
            parameter.data = parameter.data.to(dtype)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a number format is narrower than float32."""
    return dtype.itemsize < torch.float32.itemsize


# ---- torch.compile for the decoder layers of student and teacher ----


@contextmanager
def compiled(network: PreTrainedModel, anatomy: Anatomy, wanted: bool) -> Iterator[None]:
    """Within the block, decoder layers run compiled, if that is wanted, for sequences of any length.

    Layer by layer, because equal layers share what is compiled, and because the output embedding has hooks that a
    compiled network would not see change. Of a layer with a state-space block, only the MLP is compiled: torch 2.13
    cannot compile the scan's backward for lengths that vary. The modules stay where they are, so parameters keep their
    names; gradient checkpointing is around a layer and so around what is compiled.
    """
    parts: list[Any] = []
    if wanted:
        for layer, module in enumerate(anatomy.layers(network)):
            parts += anatomy.modules(network, layer, Component.MLP) if layer in anatomy.ssm_layers else [module]
    for part in parts:
        part.compile(dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # torch has no public way back


@contextmanager
def uncompiled(compiling: bool) -> Iterator[None]:
    """Within the block, what `compiled` has compiled, if that was wanted, runs as it was written.

    For text that is written token by token: a cache in its several states is a new case each time, and soon torch would
    give up on compiling these layers at all.
    """
    with torch.compiler.set_stance("force_eager") if compiling else nullcontext():
        yield


def check_compiler(device: torch.device, section: str) -> None:
    """Refuse to compile where nothing can be compiled, by compiling something small.

    Args:
        device: where the layers are.
        section: of the recipe, that asks for it.

    Raises:
        RadistillError: with the first line of what torch says.
    """
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows as one of many exceptions
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "triton and a C compiler"
        raise RadistillError(
            f"{section}.compile is true, but torch cannot compile for {device.type} here ({one_line(error)}); install "
            f"{needed}, or set it to false"
        ) from None
