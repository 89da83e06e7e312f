"""Let the Mamba-2 blocks of a network, as transformers builds them, run our functions on a CPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridRMSNormGated

from radistill.mixers.fast.replay import tape_for
from radistill.mixers.fast.swap import CONVOLUTION, Slot, Swap, is_ours
from radistill.mixers.mamba2.ssd.chunked import chunked_scan
from radistill.mixers.mamba2.ssd.continued import continued_scan
from radistill.mixers.mamba2.ssd.gated_norm import gated_norm

_NO_LIMIT = (0.0, float("inf"))


def use_fast_ssd(network: nn.Module) -> None:
    """Let Mamba-2 blocks run our convolution, scan and gated norm wherever transformers would run plain torch on a CPU.

    How, and what stays as it is: see `radistill.mixers.fast.swap`.
    """
    _SWAP.use(network)


def without_fast_ssd(network: nn.Module) -> AbstractContextManager[None]:
    """Undo `use_fast_ssd` inside the block, to measure or test against transformers' own path."""
    return _SWAP.without(network)


def _is_norm(module: nn.Module) -> bool:
    return type(module) is GraniteMoeHybridRMSNormGated


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
    if D is None or D.dim() != 1 or dt_bias is None or not settings.get("dt_softplus") or not is_ours(dt, settings):
        return original(hidden_states, dt, A, B, C, chunk_size, **settings)
    initial, limit = settings.get("initial_states"), settings.get("dt_limit", _NO_LIMIT)
    tape = tape_for(initial)
    # transformers limits steps in a scan, but not in decoding from a state, which a verification must repeat.
    if tape is not None and (initial is not None or tuple(limit) == _NO_LIMIT):
        y, tape.replay = continued_scan(hidden_states, dt, A, B, C, D=D, dt_bias=dt_bias, initial_state=initial)
        return y, initial
    y, state = chunked_scan(hidden_states, dt, A, B, C, D=D, dt_bias=dt_bias, initial_state=initial, dt_limit=limit)
    return (y, state) if settings.get("return_final_states") else y


def _norm(norm: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    if gate is None or not is_ours(hidden_states, {}):
        return type(norm).forward(norm, hidden_states, gate)
    # transformers before 5.23 has no group_size and normalises over all channels.
    group_size = getattr(norm, "group_size", hidden_states.shape[-1])
    return gated_norm(hidden_states, gate, norm.weight, norm.variance_epsilon, group_size)


_SCAN = frozenset({"D", "dt_bias", "initial_states", "dt_softplus", "dt_limit", "return_final_states"})
_SWAP = Swap(slots={**CONVOLUTION, "mamba2_chunk_scan": Slot(_scan, _SCAN)}, is_norm=_is_norm, norm=_norm)
