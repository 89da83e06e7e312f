"""torch.compile for the decoder layers of student and teacher."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from radistill.errors import RadistillError
from radistill.models.anatomy import Anatomy, Component


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "triton and a C compiler"
        raise RadistillError(
            f"{section}.compile is true, but torch cannot compile for {device.type} here ({reason}); install {needed}, "
            "or set it to false"
        ) from None
