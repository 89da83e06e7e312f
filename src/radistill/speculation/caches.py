"""Caches whose rows can be rolled back by different numbers of tokens, also where a layer keeps a recurrent state.

Rows stay padded on the left: after a roll-back each row's tokens are moved so that its last one is in the last slot.
So a batch whose rows accept different numbers of tokens has no holes, and every mask that transformers builds (causal,
sliding window) is right as it is. The move copies the keys and values once; a batch of one is only sliced.

A recurrent state cannot be cropped, so it is noted after every token and the right note is put back. transformers' own
scans give the last state only, and that of Jamba does not start from a state at all; therefore state-space blocks take
the tokens of a verification one by one (`stepping`).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from radistill.models.anatomy import Component
from radistill.models.cache_names import cache_argument
from radistill.models.loading import Model
from radistill.speculation.drafters import known_tokens
from radistill.speculation.masks import shadowed

States = dict[int, list[Tensor]]


class RowCache(DynamicCache):
    """Keys, values and recurrent states of a batch whose rows are padded on the left.

    It counts its slots itself: transformers reads their number off the first attention layer, which a draft may skip.
    A sliding window is applied by the attention mask alone; all keys are kept, because a roll-back may need them.

    Attributes:
        width: slots of each row, padding included.
        lengths: tokens of each row.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig, rows: int) -> None:
        """An empty cache for `rows` sequences of the model that `config` describes."""
        super().__init__(config=config)
        self.layers = [_without_window(layer) for layer in self.layers]
        self.width = 0
        self.lengths = [0] * rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of slots, the same for every layer that is not skipped."""
        return self.width

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of slots that `query_length` new tokens can see, and where these start."""
        return self.width + query_length, 0

    def fork(self) -> "RowCache":
        """A copy that may be written to while this one stays as it is. Keys and values are not copied, states are."""
        twin = copy.copy(self)
        twin.layers = [_fork(layer) for layer in self.layers]
        twin.lengths = list(self.lengths)
        return twin

    def recurrent_states(self) -> States:
        """Copies of the states of every layer that has some, by layer."""
        found = {}
        for index, layer in enumerate(self.layers):
            states = [table[key].clone() for table, key in _slots(layer)]
            if states:
                found[index] = states
        return found

    def roll_back(self, dropped: Sequence[int], history: Sequence[States]) -> None:
        """Forget the last tokens.

        Args:
            dropped: number of tokens to forget, for each row.
            history: the recurrent states after each of the last tokens; after `history[-1]` no token was read.
        """
        common = min(dropped)
        shifts = [drop - common for drop in dropped]
        self.lengths = [length - drop for length, drop in zip(self.lengths, dropped, strict=True)]
        end, start = self.width - common, self.width - common - max(self.lengths)
        self.width = max(self.lengths)
        for layer in self.layers:
            if _holds_keys(layer):
                layer.keys = _moved(layer.keys, start, end, shifts)
                layer.values = _moved(layer.values, start, end, shifts)
        if any(dropped) and history:
            self._put_back([history[-1 - drop] for drop in dropped])

    def select(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in that order."""
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for table, key in _slots(layer):
                    table[key] = table[key][list(rows)]
            if _holds_keys(layer):
                layer.keys, layer.values = layer.keys[list(rows)], layer.values[list(rows)]
        self.lengths = [self.lengths[row] for row in rows]
        self.roll_back([0] * len(rows), ())

    def _put_back(self, states: Sequence[States]) -> None:
        """Row b of every recurrent state becomes row b of `states[b]`."""
        for index in states[0]:
            for number, (table, key) in enumerate(_slots(self.layers[index])):
                table[key] = torch.stack([noted[index][number][row] for row, noted in enumerate(states)])


@contextmanager
def stepping(model: Model, cache: RowCache) -> Iterator[list[States]]:
    """Let the state-space blocks read the tokens of a pass one by one, and note their states.

    Everything else in the network reads all tokens at once. The cost: the weights of the state-space blocks are read
    once a token instead of once a pass.

    Yields:
        A list that the pass fills: the states after each token.
    """
    history: list[States] = []

    def stepped(layer: int, forward: Any) -> Any:
        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kwargs["attention_mask"] = None  # only prompts are padded
            outputs = []
            for position in range(hidden_states.shape[1]):
                outputs.append(forward(hidden_states[:, position : position + 1], *args, **kwargs))
                if position == len(history):
                    history.append({})
                history[position][layer] = [table[key].clone() for table, key in _slots(cache.layers[layer])]
            return torch.cat(outputs, dim=1)

        return run

    with ExitStack() as stack:
        for layer in model.anatomy.ssm_layers:
            for module in model.anatomy.modules(model.network, layer, Component.SSM):
                stack.enter_context(shadowed(module, stepped(layer, module.forward)))
        yield history


def read_tokens(
    model: Model, cache: RowCache, tokens: Tensor, *, keep: int = 0, counts: Sequence[int] | None = None
) -> Tensor:
    """Run the network, as it is masked at the moment, over new tokens.

    Args:
        model: its network reads.
        cache: what was read before; it takes in the new tokens.
        tokens: [batch, time]; one that the network does not know is read as padding (`known_tokens`).
        keep: compute logits after this many last tokens; 0 for all.
        counts: how many of the last tokens of each row are no padding; None for all.

    Returns:
        Logits, [batch, keep or time, vocab].
    """
    tokens = known_tokens(model, tokens)
    time = tokens.shape[1]
    lengths = [length + (time if counts is None else counts[row]) for row, length in enumerate(cache.lengths)]
    padding = torch.tensor([cache.width + time - length for length in lengths], device=tokens.device)[:, None]
    slots = torch.arange(cache.width + time, device=tokens.device)
    output = model.network(
        input_ids=tokens,
        attention_mask=(slots >= padding).long(),
        position_ids=(slots[cache.width :] - padding).clamp(min=0),
        use_cache=True,
        logits_to_keep=keep,
        **{cache_argument(model.network): cache},
    )
    cache.width += time
    cache.lengths = lengths
    return output.logits


def read_prompts(model: Model, cache: RowCache, prompts: Sequence[Sequence[int]]) -> None:
    """Fill an empty cache with prompts, which may be empty."""
    counts = [len(prompt) for prompt in prompts]
    width = max(counts)
    if width == 0:
        return
    if min(counts) < width:
        # Recurrent layers take a single column for a token and would read the padding in it.
        width = max(width, 2)
    tokens = torch.full((len(prompts), width), model.pad_token_id)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
    read_tokens(model, cache, tokens, keep=1, counts=counts)


def _without_window(layer: Any) -> Any:
    if not isinstance(layer, DynamicSlidingWindowLayer):
        return layer
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return DynamicLayer()


def _fork(layer: Any) -> Any:
    """Keys and values are only ever replaced, so both may hold them; states are written in place."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            copied = {key: entry.clone() if isinstance(entry, Tensor) else entry for key, entry in value.items()}
            setattr(twin, name, copied)
    return twin


def _slots(layer: Any) -> list[tuple[dict[int, Tensor], int]]:
    """Where a layer keeps its convolution's memory and its recurrent state; empty before the first token."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return []
    tables: list[dict[int, Any]] = [layer.conv_states, layer.recurrent_states]
    return [(table, key) for table in tables for key, state in table.items() if state is not None]


def _holds_keys(layer: Any) -> bool:
    return isinstance(layer, CacheLayerMixin) and layer.get_seq_length() > 0


def _moved(states: Tensor, start: int, end: int, shifts: Sequence[int]) -> Tensor:
    """Slots `start` to `end` of [batch, heads, slots, size] after row b has moved right by `shifts[b]`."""
    if not any(shifts):
        return states[:, :, start:end]
    slots = torch.arange(start, end, device=states.device) - torch.tensor(shifts, device=states.device)[:, None]
    return torch.take_along_dim(states, slots.clamp(min=0)[:, None, :, None], dim=2)
