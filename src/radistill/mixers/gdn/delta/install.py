"""Let the Gated DeltaNet blocks of a network, as transformers builds them, run our functions on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from radistill.mixers.fast.gated_norm import norm_then_gate
from radistill.mixers.fast.replay import tape_for
from radistill.mixers.fast.swap import CONVOLUTION, Slot, Swap, is_ours, one_token
from radistill.mixers.gdn.delta.chunked import gated_delta_rule
from radistill.mixers.gdn.delta.step import block_step, continued_rule

# Classes of transformers that norm, weigh and then gate by SiLU.
_NORMS = {"Qwen3_5RMSNormGated", "Qwen3_5MoeRMSNormGated", "Qwen3NextRMSNormGated"}

# Classes whose projections are as in Qwen3.5.
_BLOCKS = {"Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet"}


def _shadow(module: nn.Module) -> Callable[..., Tensor] | None:
    name = type(module).__name__ if type(module).__module__.startswith("transformers.") else ""
    if name in _BLOCKS:
        return partial(one_token, block_step)
    return _norm if name in _NORMS else None


def _rule(
    original: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    **settings: Any,
) -> Any:
    if not is_ours(query, settings):
        return original(query, key, value, g, beta, **settings)
    initial, normalise = settings.get("initial_state"), settings.get("use_qk_l2norm_in_kernel", False)
    tape = tape_for(initial)
    if tape is not None:
        o, tape.replay = continued_rule(query, key, value, g, beta, initial_state=initial, normalise=normalise)
        return o.to(query.dtype), initial
    o, state = gated_delta_rule(query, key, value, g, beta, initial_state=initial, normalise=normalise)
    return o.to(query.dtype), state if settings.get("output_final_state") else None


def _norm(norm: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
    # Half precision is rounded between the steps of transformers' norm, so that is left to it.
    single = hidden_states.dtype == gate.dtype == norm.weight.dtype and hidden_states.dtype.itemsize >= 4
    if not single or norm.activation != "silu" or not is_ours(hidden_states, {}):
        return type(norm).forward(norm, hidden_states, gate)
    return norm_then_gate(hidden_states, gate, norm.weight, norm.variance_epsilon)


_RULE = frozenset({"query", "key", "g", "beta", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel"})
SWAP = Swap({**CONVOLUTION, "torch_chunk_gated_delta_rule": Slot(_rule, _RULE)}, _shadow)
"""Our convolution, rule, norm and step wherever transformers would run plain torch on a CPU; see `fast.swap`."""
