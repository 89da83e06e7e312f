"""What Granite's layers do around their blocks, without what changes nothing. Other families do not have it at all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radistill.mixers.fast.swap import is_ours


def layer_forward(layer: Any, hidden_states: Tensor, *more: Any, **given: Any) -> Tensor:
    """A layer whose residual multiplier is 1, as it is where another family was converted, does not multiply by it."""
    plain = layer.residual_multiplier == 1.0 and not layer.has_experts
    if not plain or more or torch.is_grad_enabled() or not is_ours(hidden_states, given):
        result: Tensor = type(layer).forward(layer, hidden_states, *more, **given)
        return result
    normed = layer.input_layernorm(hidden_states)
    if layer.mamba is not None:
        hidden_states = hidden_states + layer.mamba(hidden_states=normed, **_without(given))
    else:
        hidden_states = hidden_states + layer.self_attn(hidden_states=normed, **given)[0]
    return hidden_states + layer.shared_mlp(layer.post_attention_layernorm(hidden_states))


def mlp_forward(mlp: Any, hidden_states: Tensor) -> Tensor:
    """An MLP that reads one token: two products are faster than one twice as wide whose halves are not contiguous."""
    joined = mlp.input_linear
    one_token = hidden_states.shape[1] == 1 and type(joined) is torch.nn.Linear and not torch.is_grad_enabled()
    if not one_token or not is_ours(hidden_states, {}):
        result: Tensor = type(mlp).forward(mlp, hidden_states)
    else:
        gate, up = joined.weight.chunk(2)
        result = mlp.output_linear(mlp.activation(F.linear(hidden_states, gate)) * F.linear(hidden_states, up))
    return result


def _without(given: dict[str, Any]) -> dict[str, Any]:
    """What a Mamba-2 block is given of what attention is given."""
    return {name: value for name, value in given.items() if name not in ("use_cache", "position_embeddings")}
