"""Forward passes that start at a later layer.

A mask leaves every layer below its first skipped one as it is, so those layers compute the same for many masks. They
are run once, and a trial starts where it differs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from radistill.models.loading import Model
from radistill.models.logits import ResponseLogits, response_logits
from radistill.models.sequences import Batch
from radistill.speculation.masks import ComponentMask, masked, restore_forward, shadow_forward


class PrefixCache:
    """The full model's input to every layer, for one batch.

    Holds layers x batch x time x hidden numbers in the model's dtype, on the model's device.
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        """Run the full model once over `batch` and keep what it computed on the way."""
        self._model = model
        self._batch = batch
        self._inputs: list[Tensor] = []
        self._in_tuples = False
        layers = model.anatomy.layers(model.network)
        handles = [layer.register_forward_pre_hook(self._record, with_kwargs=True) for layer in layers]
        handles.append(layers[0].register_forward_hook(self._look))
        try:
            with torch.inference_mode():
                self.full: ResponseLogits = response_logits(model.network, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs.append(args[0] if args else kwargs["hidden_states"])

    def _look(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Some architectures' layers return a tuple that starts with the hidden states.
        self._in_tuples = isinstance(output, tuple)

    def run(self, mask: ComponentMask) -> ResponseLogits:
        """Logits of the masked model on the batch: the same, to the last bit, as a masked forward from the start."""
        first = mask.first_layer
        if first is None:
            return self.full
        with torch.inference_mode(), masked(self._model, mask), self._starting_at(first):
            return response_logits(self._model.network, self._batch)

    def tokens_per_run(self, mask: ComponentMask) -> float:
        """Cost of `run(mask)` in tokens through the whole model: a pass over half of the layers counts half."""
        first = mask.first_layer
        if first is None:
            return 0.0
        share = (self._model.anatomy.num_layers - first) / self._model.anatomy.num_layers
        return float(self._batch.attention_mask.sum()) * share

    @contextmanager
    def _starting_at(self, first: int) -> Iterator[None]:
        layers = self._model.anatomy.layers(self._model.network)
        recorded = self._inputs[first]

        def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
            return (hidden_states, None) if self._in_tuples else hidden_states

        def enter(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
            return pass_through(recorded)

        shadowed = list(layers[:first])
        try:
            for layer in shadowed[:-1]:
                shadow_forward(layer, pass_through)
            if shadowed:
                shadow_forward(shadowed[-1], enter)
            yield
        finally:
            for layer in shadowed:
                restore_forward(layer)
