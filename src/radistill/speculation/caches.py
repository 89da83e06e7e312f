"""Caches whose rows can be rolled back by different numbers of tokens, also where a layer keeps a recurrent state.

Rows stay padded on the left: after a roll-back each row's tokens are moved so that its last one is in the last slot.
So a batch whose rows accept different numbers of tokens has no holes, and every mask that transformers builds (causal,
sliding window) is right as it is. The move copies the keys and values once; a batch of one is only sliced.

A recurrent state cannot be cropped, so it is known after every token (`speculation.states`). Blocks that start from the
stored state read the tokens of a verification in one pass, others one by one (`verifying`).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
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
from radistill.models.pictures import Images
from radistill.models.sequences import image_arguments
from radistill.speculation.drafters import known_tokens
from radistill.speculation.masks import shadowed
from radistill.speculation.states import Copies, History, read_at_once, store, stored


class RowCache(DynamicCache):
    """Keys, values and recurrent states of a batch whose rows are padded on the left.

    It counts its slots itself: transformers reads their number off the first attention layer, which a draft may skip.
    A sliding window is applied by the attention mask alone; all keys are kept, because a roll-back may need them.

    Attributes:
        width: slots of each row, padding included.
        lengths: tokens of each row.
        shifts: [rows, 1], how much further each row's positions are than its number of tokens: an image may take fewer
            positions than tokens (Qwen2.5-VL, arXiv 2502.13923); 0 else.
        stepped: layers whose state-space blocks are known to read a verification token by token.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig, rows: int) -> None:
        """An empty cache for `rows` sequences of the model that `config` describes."""
        super().__init__(config=config)
        self.layers = [_without_window(layer) for layer in self.layers]
        self.width = 0
        self.lengths = [0] * rows
        self.shifts = torch.zeros(rows, 1, dtype=torch.long)
        self.stepped: set[int] = set()

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

    def note_states(self, history: History) -> None:
        """Add copies of the present states of every layer that has some."""
        for index, layer in enumerate(self.layers):
            if stored(layer):
                noted = history.setdefault(index, Copies())
                assert isinstance(noted, Copies)
                noted.add(layer)

    def roll_back(self, dropped: Sequence[int], history: History) -> None:
        """Forget the last tokens.

        Args:
            dropped: number of tokens to forget, for each row.
            history: the recurrent states after each of the last tokens, the very last one included.
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
        for index, states in history.items():
            store(self.layers[index], states.without(dropped))

    def select(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in that order."""
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for table, key in stored(layer):
                    table[key] = table[key][list(rows)]
            if _holds_keys(layer):
                layer.keys, layer.values = layer.keys[list(rows)], layer.values[list(rows)]
        self.lengths = [self.lengths[row] for row in rows]
        self.shifts = self.shifts[list(rows)]
        self.roll_back([0] * len(rows), {})


@contextmanager
def verifying(model: Model, cache: RowCache) -> Iterator[History]:
    """Let the state-space blocks read the several tokens of a pass so that the cache can forget some of them.

    Blocks that are seen to start from the stored state read all tokens in one pass, as everything else in the network
    does. Others read them one by one, so that their weights are read once a token.

    Yields:
        What the pass fills, for `RowCache.roll_back`. Until then the recurrent states in the cache are nobody's.
    """
    history: History = {}

    def reading(layer: int, forward: Any) -> Any:
        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kwargs["attention_mask"] = None  # only prompts are padded
            time = hidden_states.shape[1]
            if time > 1 and layer not in cache.stepped:
                found = read_at_once(cache, layer, time, lambda: forward(hidden_states, *args, **kwargs))
                if found is not None:
                    output, history[layer] = found
                    return output
                if stored(cache.layers[layer]):
                    cache.stepped.add(layer)
            outputs, copies = [], Copies()
            for position in range(time):
                outputs.append(forward(hidden_states[:, position : position + 1], *args, **kwargs))
                copies.add(cache.layers[layer])
            history[layer] = copies
            return torch.cat(outputs, dim=1)

        return run

    with ExitStack() as stack:
        for layer in model.anatomy.ssm_layers:
            for module in model.anatomy.modules(model.network, layer, Component.SSM):
                stack.enter_context(shadowed(module, reading(layer, module.forward)))
        yield history


def read_tokens(
    model: Model,
    cache: RowCache,
    tokens: Tensor,
    *,
    keep: int = 0,
    counts: Sequence[int] | None = None,
    images: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Run the network, as it is masked at the moment, over new tokens.

    Args:
        model: its network reads.
        cache: what was read before; it takes in the new tokens.
        tokens: [batch, time]; one that the network does not know is read as padding (`known_tokens`).
        keep: compute logits after this many last tokens; 0 for all.
        counts: how many of the last tokens of each row are no padding; None for all.
        images: what the network is given besides, where the tokens are a prompt with images.

    Returns:
        Logits, [batch, keep or time, vocab].
    """
    tokens = known_tokens(model, tokens)
    time = tokens.shape[1]
    lengths = [length + (time if counts is None else counts[row]) for row, length in enumerate(cache.lengths)]
    padding = torch.tensor([cache.width + time - length for length in lengths], device=tokens.device)[:, None]
    slots = torch.arange(cache.width + time, device=tokens.device)
    mask, positions = (slots >= padding).long(), (slots[cache.width :] - padding).clamp(min=0)
    places = getattr(model.network.base_model, "get_rope_index", None)
    if images and places is not None:
        positions, cache.shifts = places(tokens, attention_mask=mask, **images)
    else:
        positions = positions + cache.shifts.to(positions.device)
    output = model.network(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=keep,
        **(images or {}),
        **{cache_argument(model.network): cache},
    )
    cache.width += time
    cache.lengths = lengths
    return output.logits


def read_prompts(
    model: Model,
    cache: RowCache,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Images | None] = (),
) -> None:
    """Fill an empty cache with prompts, which may be empty, and their images, where there are some."""
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
    shown = image_arguments(images, tokens, model.network.device)
    read_tokens(model, cache, tokens, keep=1, counts=counts, images=shown)


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


def _holds_keys(layer: Any) -> bool:
    return isinstance(layer, CacheLayerMixin) and layer.get_seq_length() > 0


def _moved(states: Tensor, start: int, end: int, shifts: Sequence[int]) -> Tensor:
    """Slots `start` to `end` of [batch, heads, slots, size] after row b has moved right by `shifts[b]`."""
    if not any(shifts):
        return states[:, :, start:end]
    slots = torch.arange(start, end, device=states.device) - torch.tensor(shifts, device=states.device)[:, None]
    return torch.take_along_dim(states, slots.clamp(min=0)[:, None, :, None], dim=2)
