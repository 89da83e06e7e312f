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
from radistill.models.logits import ResponseStates, response_states
from radistill.models.sequences import Batch
from radistill.speculation.masks import ComponentMask, masked, shadowed
from radistill.speculation.substitutes import Substitutes


class PrefixCache:
    """What the full model, and one masked model beside it, hand from layer to layer, for one batch.

    Holds at most 2 x (layers / every) x batch x time x hidden numbers in the model's dtype, on the model's device.
    """

    def __init__(self, model: Model, batch: Batch, substitutes: Substitutes | None = None, every: int = 1) -> None:
        """Nothing is run yet: the first to run and keep is the full model, which every other can start from.

        Args:
            model, batch: the model, and what it reads.
            substitutes: what runs in place of masked attentions.
            every: of so many layers one has its input kept, the output of the last layer among them.
        """
        self._model = model
        self._batch = batch
        self._substitutes = substitutes
        layers = model.anatomy.num_layers
        self._places = {layer for layer in range(1, layers + 1) if (layers - layer) % every == 0}
        # By mask and layer, the input of that layer; one beyond the last is the output of the last.
        self._kept: dict[ComponentMask, dict[int, Tensor]] = {}
        self._in_tuples = False

    def run(self, mask: ComponentMask, *, keep: bool = False) -> ResponseStates:
        """What the masked model's logits are made of: the same, to the last bit, as in a masked forward from the start.

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
                return response_states(self._model.network, self._batch)
            with self._recording() as recorded:
                states = response_states(self._model.network, self._batch)
        full = {kept: inputs for kept, inputs in self._kept.items() if kept == ComponentMask()}
        before = {layer: inputs for layer, inputs in self._kept.get(base, {}).items() if layer < first}
        self._kept = {**full, mask: before | {layer: inputs for layer, inputs in recorded.items() if layer >= first}}
        return states

    def keeps(self, mask: ComponentMask) -> bool:
        """Whether what the layers hand on under `mask` is remembered."""
        return mask in self._kept

    def _start(self, mask: ComponentMask) -> tuple[ComponentMask, int]:
        """The remembered mask from which least is left to compute, and the layer to start at; 0 is from the start."""
        anatomy = self._model.anatomy
        # A layer that is passed over leaves no keys for the layers that borrow them.
        most = min(anatomy.lenders, default=anatomy.num_layers)
        starts = {}
        for kept, inputs in self._kept.items():
            common = min(mask.first_difference(kept, anatomy.num_layers), most)
            starts[kept] = max((layer for layer in inputs if layer <= common), default=0)
        best = max(starts, key=starts.__getitem__, default=ComponentMask())
        return best, starts.get(best, 0)

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
    def _recording(self) -> Iterator[dict[int, Tensor]]:
        """Record the inputs of the layers that are kept, and the output of the last."""
        layers = self._model.anatomy.layers(self._model.network)
        recorded: dict[int, Tensor] = {}

        def recorder(layer: int) -> Any:
            def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                recorded[layer] = args[0] if args else kwargs["hidden_states"]

            return record

        def record_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Some architectures' layers return a tuple that starts with the hidden states.
            self._in_tuples = isinstance(output, tuple)
            recorded[len(layers)] = output[0] if isinstance(output, tuple) else output

        with layers[-1].register_forward_hook(record_output), ExitStack() as stack:
            for layer in self._places - {len(layers)}:
                stack.enter_context(layers[layer].register_forward_pre_hook(recorder(layer), with_kwargs=True))
            yield recorded
