"""Let the Mamba-2 blocks of a network, as transformers builds them, run our functions on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite

from radistill.mixers.fast.gated_norm import gated_norm
from radistill.mixers.fast.replay import tape_for
from radistill.mixers.fast.swap import CONVOLUTION, Slot, Swap, is_ours, one_token
from radistill.mixers.mamba2.ssd.chunked import chunked_scan
from radistill.mixers.mamba2.ssd.layer import layer_forward, mlp_forward
from radistill.mixers.mamba2.ssd.step import block_step, continued_scan

_NO_LIMIT = (0.0, float("inf"))


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
    return gated_norm(hidden_states, gate, norm.weight, norm.variance_epsilon, norm.group_size)


_SCAN = frozenset({"D", "dt_bias", "initial_states", "dt_softplus", "dt_limit", "return_final_states"})
_SHADOWS: dict[type, Callable[..., Tensor]] = {
    granite.GraniteMoeHybridRMSNormGated: _norm,
    granite.GraniteMoeHybridMambaLayer: partial(one_token, block_step),
    granite.GraniteMoeHybridDecoderLayer: layer_forward,
    granite.GraniteMoeHybridMLP: mlp_forward,
}
SWAP = Swap({**CONVOLUTION, "mamba2_chunk_scan": Slot(_scan, _SCAN)}, lambda module: _SHADOWS.get(type(module)))
"""Our convolution, scan, norm and step wherever transformers would run plain torch on a CPU; see `fast.swap`."""
