"""Let the recurrent blocks of a network, as transformers builds them, run our functions on a CPU.

transformers' blocks find the functions between their projections by name in the Python module that defines them. There
ours are put, for every network of that family in this process. Ours hand on each call that is not theirs (another
device, packed sequences, autocast, tracing), so kernels for GPUs stay what transformers has chosen. Norms, the step of
a block over one token, and Granite's layers are shadowed on the instance. No class changes, and nothing of this is in
a state dict or a saved folder.
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
_NOT_OURS = {"seq_idx", "cu_seqlens", "cu_seq_lens_q", "z"}


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
    """The functions and modules of one kind of block.

    Attributes:
        slots: by the name under which transformers' modules have the function.
        shadow: what stands in for the forward of a module, and takes the module first; None for modules that are left
            alone.
    """

    slots: dict[str, Slot]
    shadow: Callable[[nn.Module], Callable[..., Tensor] | None]

    def use(self, network: nn.Module) -> None:
        """Swap in every Python module that defines recurrent blocks of `network`, and shadow modules of these."""
        for namespace in _namespaces(network):
            for name, slot in self.slots.items():
                original: Any = getattr(namespace, name, None)
                if original is None or is_swapped(original):
                    continue
                if slot.needed <= set(inspect.signature(original).parameters):
                    setattr(namespace, name, functools.wraps(original)(_Swapped(slot.ours, original)))
        for module in network.modules():
            ours = self.shadow(module)
            if ours is not None:
                module.__dict__["forward"] = _Swapped(ours, module)

    @contextmanager
    def without(self, network: nn.Module) -> Iterator[None]:
        """Undo `use` inside the block, to measure or test against transformers' own path."""
        swapped: list[tuple[ModuleType, str, Any]] = [
            (namespace, name, vars(namespace)[name])
            for namespace in _namespaces(network)
            for name in self.slots
            if is_swapped(vars(namespace).get(name))
        ]
        ours = [module for module in network.modules() if self.shadow(module) is not None]
        shadows = [(module, module.__dict__.pop("forward", None)) for module in ours]
        for namespace, name, function in swapped:
            setattr(namespace, name, function.args[0])
        try:
            yield
        finally:
            for namespace, name, function in swapped:
                setattr(namespace, name, function)
            for module, shadow in shadows:
                if shadow is not None:
                    module.__dict__["forward"] = shadow


class _Swapped(functools.partial[Any]):
    """A function of ours with the original, or the module, that it stands in for."""


def is_swapped(function: Any) -> bool:
    """Whether a function is one of ours in the place of transformers'."""
    return isinstance(function, _Swapped)


def is_ours(tensor: Tensor, settings: dict[str, Any]) -> bool:
    """Whether a call of a swapped function is for us: on a CPU, and without anything that only kernels know."""
    return (
        tensor.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not any(settings[name] is not None for name in _NOT_OURS & settings.keys())
    )


def one_token(
    step: Callable[..., Tensor],
    block: Any,
    hidden_states: Tensor,
    cache: Any = None,
    attention_mask: Any = None,
    **settings: Any,
) -> Tensor:
    """The forward of a block of transformers, as `step` of block, hidden states and stored states where that may be."""
    states = _stored_states(block, hidden_states, cache, settings) if attention_mask is None else ()
    if not states:
        settings |= {"cache": cache, "attention_mask": attention_mask}
        result: Tensor = type(block).forward(block, hidden_states, **settings)
        return result
    return step(block, hidden_states, *states)


def _stored_states(block: Any, hidden_states: Tensor, cache: Any, settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """The convolution's memory and the recurrent state of a block that is given one token more.

    Returns:
        Both, to be changed in place; nothing where the call is not for us, as where gradients are wanted.
    """
    if hidden_states.shape[1] != 1 or cache is None or torch.is_grad_enabled() or not is_ours(hidden_states, settings):
        return ()
    memory, state = cache.get_conv_state(block.layer_idx), cache.get_recurrent_state(block.layer_idx)
    # While a cache records what it may have to crop, its memory is longer than a convolution.
    if memory is None or state is None or memory.shape[-1] != block.conv1d.kernel_size[0]:
        return ()
    same_type = memory.dtype == hidden_states.dtype == block.conv1d.weight.dtype and state.dtype.itemsize >= 4
    plain = block.activation == "silu" and state.is_contiguous() and not cache.is_recording_past(block.layer_idx)
    return (memory, state) if same_type and plain else ()


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
