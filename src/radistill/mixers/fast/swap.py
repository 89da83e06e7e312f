"""Let the recurrent blocks of a network, as transformers builds them, run our functions on a CPU.

transformers' blocks find the functions between their projections by name in the Python module that defines them. There
ours are put, for every network of that family in this process. Ours hand on each call that is not theirs (another
device, packed sequences, autocast, tracing), so kernels for GPUs stay what transformers has chosen. A norm is shadowed
on the instance. No class changes, and nothing of this is in a state dict or a saved folder.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from radistill.mixers.fast.convolution import causal_convolution

# Arguments with which transformers' kernels do something that ours do not.
_NOT_OURS = ("seq_idx", "cu_seqlens", "z")


@dataclass(frozen=True)
class Slot:
    """A function of transformers that is swapped.

    Attributes:
        ours: takes the original as its first argument, and hands on to it what is not ours.
        needed: arguments by which the original is known to be the function that is meant.
    """

    ours: Callable[..., Any]
    needed: frozenset[str]


@dataclass(frozen=True)
class Swap:
    """The functions and norms of one kind of block.

    Attributes:
        slots: by the name under which transformers' modules have the function.
        is_norm: whether a module is a norm that `norm` stands in for.
        norm: takes the norm as its first argument; then as the forward of its class.
    """

    slots: dict[str, Slot]
    is_norm: Callable[[nn.Module], bool]
    norm: Callable[..., Tensor]

    def use(self, network: nn.Module) -> None:
        """Swap in every Python module that defines recurrent blocks of `network`, and shadow its norms."""
        for namespace in _namespaces(network):
            for name, slot in self.slots.items():
                original: Any = getattr(namespace, name, None)
                if original is None or is_swapped(original):
                    continue
                if slot.needed <= set(inspect.signature(original).parameters):
                    setattr(namespace, name, functools.wraps(original)(_Swapped(slot.ours, original)))
        for module in network.modules():
            if self.is_norm(module):
                module.__dict__["forward"] = functools.partial(self.norm, module)

    @contextmanager
    def without(self, network: nn.Module) -> Iterator[None]:
        """Undo `use` inside the block, to measure or test against transformers' own path."""
        swapped: list[tuple[ModuleType, str, Any]] = [
            (namespace, name, vars(namespace)[name])
            for namespace in _namespaces(network)
            for name in self.slots
            if is_swapped(vars(namespace).get(name))
        ]
        norms = [module for module in network.modules() if self.is_norm(module)]
        shadows = [(module, module.__dict__.pop("forward", None)) for module in norms]
        for namespace, name, ours in swapped:
            setattr(namespace, name, ours.args[0])
        try:
            yield
        finally:
            for namespace, name, ours in swapped:
                setattr(namespace, name, ours)
            for module, shadow in shadows:
                if shadow is not None:
                    module.__dict__["forward"] = shadow


class _Swapped(functools.partial[Any]):
    """A function of ours with the original that it stands in for."""


def is_swapped(function: Any) -> bool:
    """Whether a function is one of ours in the place of transformers'."""
    return isinstance(function, _Swapped)


def is_ours(tensor: Tensor, settings: dict[str, Any]) -> bool:
    """Whether a call of a swapped function is for us: on a CPU, and without anything that only kernels know."""
    return (
        tensor.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and all(settings.get(name) is None for name in _NOT_OURS)
    )


def _namespaces(network: nn.Module) -> list[ModuleType]:
    """The Python modules that define the recurrent blocks of a network."""
    names = {type(module).__module__ for module in network.modules() if hasattr(module, "A_log")}
    return [sys.modules[name] for name in sorted(names)]


def _convolution(
    original: Callable[..., Tensor],
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **settings: Any,
) -> Tensor:
    same_type = hidden_states.dtype == weight.dtype
    if activation != "silu" or not same_type or not is_ours(hidden_states, settings):
        return original(hidden_states, weight, bias, activation=activation, **settings)
    return causal_convolution(hidden_states, weight, bias)


CONVOLUTION = {"causal_conv1d_fn": Slot(_convolution, frozenset({"hidden_states", "weight", "bias", "activation"}))}
"""The slot that all of these blocks have."""
