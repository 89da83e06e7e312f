"""Component masks: which parts of which layers a draft model skips.

A draft is the model itself with some components switched off; the residual stream passes them unchanged. Masks of
attention give RAD's drafts (arXiv 2505.22135), attention and MLP those of Draft & Verify (arXiv 2309.08168), every
attention of a hybrid its component-aware draft (arXiv 2605.01106), all components of the last layers an early exit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radistill.errors import RadistillError
from radistill.mixers.fast.swap import is_swapped
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.speculation.substitutes import Substitutes


@dataclass(frozen=True)
class ComponentMask:
    """The (layer, component) pairs that a draft skips: none, where it is the full model."""

    skipped: frozenset[tuple[int, Component]] = frozenset()

    @classmethod
    def attention(cls, layers: Iterable[int]) -> "ComponentMask":
        """Skip the attention of each of `layers`."""
        return cls.of(layers, (Component.ATTENTION,))

    @classmethod
    def of(cls, layers: Iterable[int], components: Iterable[str]) -> "ComponentMask":
        """Skip these components, given by their names, of each of `layers`."""
        parts = [Component(component) for component in components]
        return cls(frozenset((layer, part) for layer in layers for part in parts))

    def first_difference(self, other: "ComponentMask", num_layers: int) -> int:
        """The lowest layer at which two masks differ; `num_layers` where they are the same."""
        return min((layer for layer, _ in self.skipped ^ other.skipped), default=num_layers)


@contextmanager
def masked(model: Model, mask: ComponentMask, substitutes: Substitutes | None = None) -> Iterator[None]:
    """Switch the masked components off inside the block; afterwards the model is as it was, also after an error.

    The forward of each skipped module is shadowed on the instance, so no model class changes and nothing is computed
    for it. A skipped module adds exactly zero to the residual stream and writes nothing to a cache. An attention whose
    keys and values later layers read still computes them: only what it adds is left out.

    With substitutes, these run in place of masked attentions, instead of nothing.

    Raises:
        RadistillError: if the model has no such layer, the layer no such component, or the attention no substitute.
    """
    modules = masked_modules(model, mask)
    silent_attention = _silent_attention(model.anatomy.hidden_size)

    def instead_of(module: nn.Module, layer: int, component: Component) -> Callable[..., Any]:
        if component is not Component.ATTENTION:
            return _silent
        if layer in model.anatomy.lenders:
            return _lending(module.forward)
        return silent_attention if substitutes is None else substitutes.forward_of(layer)

    forwards = [instead_of(*found) for found in modules]
    with ExitStack() as stack:
        for (module, _, _), forward in zip(modules, forwards, strict=True):
            stack.enter_context(shadowed(module, forward))
        yield


def masked_modules(model: Model, mask: ComponentMask) -> list[tuple[nn.Module, int, Component]]:
    """The modules that a mask switches off, each with its layer and the component that it belongs to, by layer.

    Raises:
        RadistillError: if the model has no such layer, or the layer no such component.
    """
    modules: list[tuple[nn.Module, int, Component]] = []
    for layer, component in sorted(mask.skipped):
        if not 0 <= layer < model.anatomy.num_layers:
            raise RadistillError(f"mask: layer {layer} does not exist; layers are 0 to {model.anatomy.num_layers - 1}")
        found = model.anatomy.modules(model.network, layer, component)
        if not found:
            raise RadistillError(f"mask: layer {layer} has no {component.value}")
        modules.extend((module, layer, component) for module in found)
    return modules


@contextmanager
def shadowed(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let `module` run `forward` instead of its class's own inside the block."""
    fast = vars(module).get("forward")
    if fast is not None and not is_swapped(fast):
        raise RuntimeError("this module's forward is already shadowed; masks do not nest")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if fast is not None:
            module.__dict__["forward"] = fast


def _silent(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros_like(hidden_states)


def _silent_attention(hidden_size: int) -> Callable[..., tuple[Tensor, None]]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        # Zamba2's attention reads twice the width that it writes. Attention modules return their weights as well;
        # decoder layers drop them.
        return hidden_states.new_zeros(*hidden_states.shape[:-1], hidden_size), None

    return forward


def _lending(forward: Callable[..., Any]) -> Callable[..., tuple[Tensor, None]]:
    """An attention that adds nothing, but leaves its keys and values where later layers look for them."""

    def silent(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        output, _ = forward(*args, **kwargs)
        return torch.zeros_like(output), None

    return silent
