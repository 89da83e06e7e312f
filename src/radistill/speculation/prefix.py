"""Forward passes that start at a later layer.

A mask leaves every layer below its first skipped one as it is, so those layers compute the same for many masks; two
masks that differ only from some layer on have everything below it in common. Such prefixes are run once, and a trial
starts where it differs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from radistill.models.loading import Model
from radistill.models.logits import ResponseLogits, response_logits
from radistill.models.sequences import Batch
from radistill.speculation.masks import ComponentMask, masked, shadowed
from radistill.speculation.substitutes import Substitutes


class PrefixCache:
    """What the full model, and one masked model beside it, hand from layer to layer, for one batch.

    Holds at most 2 x (layers + 1) x batch x time x hidden numbers in the model's dtype, on the model's device.
    """

    def __init__(self, model: Model, batch: Batch, substitutes: Substitutes | None = None) -> None:
        """Nothing is run yet: the first to run and keep is the full model, which every other can start from."""
        self._model = model
        self._batch = batch
        self._substitutes = substitutes
        # By mask, the input of every layer, and last the output of the last layer.
        self._kept: dict[ComponentMask, list[Tensor]] = {}
        self._in_tuples = False

    def run(self, mask: ComponentMask, *, keep: bool = False) -> ResponseLogits:
        """Logits of the masked model on the batch: the same, to the last bit, as a masked forward from the start.

        Args:
            mask: what to skip.
            keep: remember what the layers hand on, so that later runs start where they differ from this one. It takes
                the place of the masked model that was remembered before; the full model always stays.
        """
        base, first = self._start(mask)
        with (
            torch.inference_mode(),
            masked(self._model, mask, self._substitutes),
            self._starting_at(base, first),
        ):
            if not keep:
                return response_logits(self._model.network, self._batch)
            with self._recording(first) as recorded:
                logits = response_logits(self._model.network, self._batch)
        full = {kept: states for kept, states in self._kept.items() if kept == ComponentMask()}
        self._kept = {**full, mask: [*(self._kept[base][:first] if first else []), *recorded]}
        return logits

    def keeps(self, mask: ComponentMask) -> bool:
        """Whether what the layers hand on under `mask` is remembered."""
        return mask in self._kept

    def _start(self, mask: ComponentMask) -> tuple[ComponentMask, int]:
        """The remembered mask with the most layers in common, and the first layer at which they differ."""
        anatomy = self._model.anatomy
        # A layer that is passed over leaves no keys for the layers that borrow them.
        most = min(anatomy.lenders, default=anatomy.num_layers)
        common = {kept: min(mask.first_difference(kept, anatomy.num_layers), most) for kept in self._kept}
        best = max(common, key=common.__getitem__, default=ComponentMask())
        return best, common.get(best, 0)

    @contextmanager
    def _starting_at(self, base: ComponentMask, first: int) -> Iterator[None]:
        layers = self._model.anatomy.layers(self._model.network)

        def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
            return (hidden_states, None) if self._in_tuples else hidden_states

        def enter(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
            return pass_through(self._kept[base][first])

        # Masks shadow modules inside the layers; here whole layers are, so the two do not meet.
        with ExitStack() as stack:
            for index, layer in enumerate(layers[:first]):
                stack.enter_context(shadowed(layer, enter if index == first - 1 else pass_through))
            yield

    @contextmanager
    def _recording(self, first: int) -> Iterator[list[Tensor]]:
        """Record the inputs of the layers from `first` on, and the output of the last."""
        layers = self._model.anatomy.layers(self._model.network)
        recorded: list[Tensor] = []

        def record_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorded.append(args[0] if args else kwargs["hidden_states"])

        def record_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Some architectures' layers return a tuple that starts with the hidden states.
            self._in_tuples = isinstance(output, tuple)
            recorded.append(output[0] if isinstance(output, tuple) else output)

        with layers[-1].register_forward_hook(record_output), ExitStack() as stack:
            for layer in layers[first:]:
                stack.enter_context(layer.register_forward_pre_hook(record_input, with_kwargs=True))
            yield recorded
