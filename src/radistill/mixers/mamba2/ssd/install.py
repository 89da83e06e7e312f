"""Let the Mamba-2 blocks of a network, as transformers builds them, run our functions on a CPU."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridRMSNormGated

from radistill.mixers.mamba2.ssd.chunked import chunked_scan
from radistill.mixers.mamba2.ssd.convolution import causal_convolution
from radistill.mixers.mamba2.ssd.gated_norm import gated_norm

# Arguments with which transformers' kernels do something that ours do not.
_NOT_OURS = ("seq_idx", "cu_seqlens", "z")


def use_fast_ssd(network: nn.Module) -> None:
    """Let Mamba-2 blocks run our convolution, scan and gated norm wherever transformers would run plain torch on a CPU.

    transformers' blocks find the convolution and the scan by name in the module that defines them. There they are put,
    for every network of that family in this process. Ours hand on each call that is not theirs (another device, packed
    sequences, autocast, tracing), so kernels for GPUs stay what transformers has chosen. A norm is shadowed on the
    instance. No class changes, and nothing of this is in a state dict or a saved folder.
    """
    for namespace in _namespaces(network):
        for name, (ours, needed) in _SLOTS.items():
            original: Any = getattr(namespace, name, None)
            if original is None or _is_swapped(original):
                continue
            if needed <= set(inspect.signature(original).parameters):
                setattr(namespace, name, functools.wraps(original)(functools.partial(ours, original)))
    for module in network.modules():
        if _is_norm(module):
            module.__dict__["forward"] = functools.partial(_norm, module)


@contextmanager
def without_fast_ssd(network: nn.Module) -> Iterator[None]:
    """Undo `use_fast_ssd` inside the block, to measure or test against transformers' own path."""
    slots: list[tuple[ModuleType, str, Any]] = [
        (namespace, name, vars(namespace)[name])
        for namespace in _namespaces(network)
        for name in _SLOTS
        if _is_swapped(vars(namespace).get(name))
    ]
    shadows = [(module, module.__dict__.pop("forward", None)) for module in network.modules() if _is_norm(module)]
    for namespace, name, swapped in slots:
        setattr(namespace, name, swapped.args[0])
    try:
        yield
    finally:
        for namespace, name, swapped in slots:
            setattr(namespace, name, swapped)
        for module, shadow in shadows:
            if shadow is not None:
                module.__dict__["forward"] = shadow


def _namespaces(network: nn.Module) -> list[ModuleType]:
    """The Python modules that define the recurrent blocks of a network."""
    names = {type(module).__module__ for module in network.modules() if hasattr(module, "A_log")}
    return [sys.modules[name] for name in sorted(names)]


def _is_norm(module: nn.Module) -> bool:
    return type(module) is GraniteMoeHybridRMSNormGated


def _is_swapped(function: Any) -> bool:
    return isinstance(function, functools.partial) and any(function.func is ours for ours, _ in _SLOTS.values())


def _convolution(
    original: Callable[..., Tensor],
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **settings: Any,
) -> Tensor:
    same_type = hidden_states.dtype == weight.dtype
    if activation != "silu" or not same_type or not _is_ours(hidden_states, settings):
        return original(hidden_states, weight, bias, activation=activation, **settings)
    return causal_convolution(hidden_states, weight, bias)


def _scan(
    original: Callable[..., Any],
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    **settings: Any,
) -> Any:
    D, dt_bias = settings.get("D"), settings.get("dt_bias")
    if D is None or D.dim() != 1 or dt_bias is None or not settings.get("dt_softplus") or not _is_ours(dt, settings):
        return original(hidden_states, dt, A, B, C, chunk_size, **settings)
    y, state = chunked_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D=D,
        dt_bias=dt_bias,
        initial_state=settings.get("initial_states"),
        dt_limit=settings.get("dt_limit", (0.0, float("inf"))),
    )
    return (y, state) if settings.get("return_final_states") else y


def _norm(norm: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    if gate is None or not _is_ours(hidden_states, {}):
        return type(norm).forward(norm, hidden_states, gate)
    # transformers before 5.23 has no group_size and normalises over all channels.
    group_size = getattr(norm, "group_size", hidden_states.shape[-1])
    return gated_norm(hidden_states, gate, norm.weight, norm.variance_epsilon, group_size)


def _is_ours(tensor: Tensor, settings: dict[str, Any]) -> bool:
    return (
        tensor.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and all(settings.get(name) is None for name in _NOT_OURS)
    )


# Functions of transformers, by name: ours, and arguments by which one is known to be the function that we mean.
_SLOTS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "causal_conv1d_fn": (_convolution, {"hidden_states", "weight", "bias", "activation"}),
    "mamba2_chunk_scan": (_scan, {"D", "dt_bias", "initial_states", "dt_softplus", "dt_limit", "return_final_states"}),
}
