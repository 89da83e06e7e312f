"""Gradient checkpointing: memory of activations against a second forward of each layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


@contextmanager
def recomputing(network: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Within the block and in training mode, only the inputs of layers are kept for the backward, if that is wanted.

    Trainer would turn it on too, but not off again.
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
