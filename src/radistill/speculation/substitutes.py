"""Blocks that can stand in for the attention of a layer: a draft with them computes what a hybrid would."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from radistill.errors import RadistillError


@dataclass(frozen=True)
class Substitutes:
    """One block for each layer whose attention can be replaced.

    Attributes:
        blocks: by layer, a module from hidden states [batch, time, hidden] to what its layer's attention would add, of
            the same shape. It must be causal, because batches are padded on the right and it is told of no padding.
    """

    blocks: Mapping[int, nn.Module]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the layers and their blocks' weights, as they are at the first call."""
        digest = hashlib.sha256()
        for layer, block in sorted(self.blocks.items()):
            for name, tensor in sorted(block.state_dict().items()):
                digest.update(f"{layer} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def forward_of(self, layer: int) -> Callable[..., tuple[Tensor, None]]:
        """What a layer's attention module runs in place of its own forward.

        Raises:
            RadistillError: if there is no block for this layer.
        """
        if layer not in self.blocks:
            raise RadistillError(f"layer {layer} has no block that could replace its attention; fit one first")
        block = self.blocks[layer]

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return block(hidden_states), None

        return forward
