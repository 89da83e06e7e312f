"""Recurrent states after each of the last tokens, so that a cache can forget some of these.

A state cannot be cropped. Either it was copied after every token (`Copies`), or several tokens were read in one pass,
and what they do to the state is done again for those that count (`OnePass`): Mamba-2 and Gated DeltaNet on a CPU, and
short convolutions. Copies take the memory of a state for each token, a pass only that of the block's activations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from radistill.mixers.fast.replay import Replay, listening


class Copies:
    """States that were copied after every token."""

    def __init__(self) -> None:
        """Of no token yet."""
        self._copies: list[list[Tensor]] = []

    def add(self, layer: Any) -> None:
        """Copy the states of a layer of a cache."""
        self._copies.append([table[key].clone() for table, key in stored(layer)])

    def without(self, dropped: Sequence[int]) -> list[Tensor]:
        """What `stored` lists, as it was before the last `dropped[b]` tokens of row b."""
        rows = [self._copies[-1 - drop] for drop in dropped]
        return [torch.stack([of_row[number][row] for row, of_row in enumerate(rows)]) for number in range(len(rows[0]))]


class OnePass:
    """States that can be computed from what a pass over several tokens has left."""

    def __init__(self, window: Tensor, time: int, replay: Replay | None) -> None:
        """After `time` tokens.

        Args:
            window: input of the convolution, [batch, channels, taps + time]: its memory before the pass, and the pass.
            time: tokens of the pass.
            replay: of the scan; None where there is only a convolution.
        """
        self._window, self._time, self._replay = window, time, replay

    def without(self, dropped: Sequence[int]) -> list[Tensor]:
        """As `Copies.without`."""
        counts = self._time - torch.tensor(dropped, device=self._window.device)
        slots = counts[:, None] + torch.arange(self._window.shape[-1] - self._time, device=counts.device)
        memory = self._window.take_along_dim(slots[:, None], dim=2)
        return [memory] if self._replay is None else [memory, self._replay(counts)]


History = dict[int, Copies | OnePass]
"""By layer, its states after each of the last tokens that it has read."""


def read_at_once(cache: Any, layer: int, time: int, forward: Callable[[], Tensor]) -> tuple[Tensor, OnePass] | None:
    """Let the state-space block of a layer read several tokens, and leave what is stored of the layer as it is.

    Whether a block starts from the stored states is seen from what it does: it must hand the memory of its convolution
    on, and its scan must be a function of ours that is given the stored state. (transformers' scan for Jamba starts
    from nothing.)

    Args:
        cache: of the whole network.
        layer, time: index of the layer, and number of tokens.
        forward: runs the block on them.

    Returns:
        What the block puts out, and its states; None where the block is not known to start from the stored ones.
    """
    held = cache.layers[layer]
    if not isinstance(held, LinearAttentionCacheLayerMixin):
        return None
    watched = cache.layers[layer] = _Watched(held)
    try:
        with listening(cache.get_recurrent_state(layer)) as tape:
            output = forward()
    finally:
        cache.layers[layer] = held
    if len(watched.windows) != 1 or (tape.replay is None and watched.has_scan):
        return None
    return output, OnePass(watched.windows[0], time, tape.replay)


def stored(layer: Any) -> list[tuple[dict[int, Tensor], int]]:
    """Where a layer keeps its convolution's memory and its recurrent state; empty before the first token."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return []
    tables: list[dict[int, Any]] = [layer.conv_states, layer.recurrent_states]
    return [(table, key) for table in tables for key, state in table.items() if state is not None]


def store(layer: Any, states: Sequence[Tensor]) -> None:
    """Replace the states of a layer of a cache, or give it its first ones."""
    places = stored(layer)
    if not places:
        layer.update_conv_state(states[0])
        for state in states[1:]:
            layer.update_recurrent_state(state)
        return
    for (table, key), state in zip(places, states, strict=True):
        table[key] = state


class _Watched(LinearAttentionLayer):
    """Shows a block the states of a layer of a cache, and stores none.

    Attributes:
        windows: what the block's convolutions read.
        has_scan: whether the block has a recurrent state beside its convolution's memory.
    """

    def __init__(self, layer: Any) -> None:
        vars(self).update(vars(layer))
        self.windows: list[Tensor] = []
        self.has_scan = any(state is not None for state in self.recurrent_states.values())

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        memory = self.conv_states[state_idx]
        if memory is not None:
            window = torch.cat([memory, conv_states], dim=-1)
        elif conv_kernel_size is not None:
            window = F.pad(conv_states, (conv_kernel_size, 0))
        else:
            return conv_states
        self.windows.append(window)
        return window

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.has_scan = True
        return recurrent_states
