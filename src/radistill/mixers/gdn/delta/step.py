"""The gated delta rule over one token, to decode, or over the few of a verification, whose state is left for later."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radistill.mixers.fast.convolution import convolution_step
from radistill.mixers.fast.replay import FewDecays, Replay
from radistill.mixers.gdn.delta.chunked import factors


def block_step(block: Any, hidden_states: Tensor, memory: Tensor, state: Tensor) -> Tensor:
    """A whole block of transformers, whose own step costs more in calls of small operations than in arithmetic.

    Args:
        block: Qwen3_5GatedDeltaNet.
        hidden_states: [batch, 1, hidden].
        memory: of the convolution, [batch, channels, taps]; changed in place, as the state is.
        state: [batch, heads, key_dim, value_dim], contiguous.

    Returns:
        [batch, 1, hidden].
    """
    batch, heads, width, size = state.shape
    mixed = block.in_proj_qkv(hidden_states)[:, 0]
    mixed = convolution_step(mixed, memory, block.conv1d.weight[:, 0], block.conv1d.bias)
    q, k, v = mixed.split([block.key_dim, block.key_dim, block.value_dim], dim=-1)
    q, k = q.view(batch, -1, width), k.view(batch, -1, width)
    g = F.softplus(block.in_proj_a(hidden_states)[:, 0].float() + block.dt_bias).mul_(block.A_log.float().exp().neg_())
    beta = block.in_proj_b(hidden_states)[:, 0].sigmoid()
    o = rule_step(state, q, k, v.view(batch, heads, size), g, beta, normalise=True).to(hidden_states.dtype)
    o = block.norm(o.view(-1, size), block.in_proj_z(hidden_states).view(-1, size))
    result: Tensor = block.out_proj(o.view(batch, 1, -1))
    return result


def rule_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, normalise: bool = False
) -> Tensor:
    """One step of `gated_delta_rule`, without gradients. The state is changed in place.

    Args:
        state: [batch, heads, key_dim, value_dim], contiguous.
        q, k: [batch, key_heads, key_dim].
        v: [batch, heads, value_dim]; a key head serves `heads / key_heads` consecutive heads.
        g: [batch, heads], logarithms of decays; not above 0.
        beta: [batch, heads].
        normalise: divide query and key by `sqrt(its square + 1e-6)` first.

    Returns:
        o, [batch, heads, value_dim], in the type of the state.
    """
    dtype, (batch, heads, width, size) = state.dtype, state.shape
    each = heads // k.shape[1]
    kq = torch.stack([k, q], dim=2).to(dtype)
    kq = (kq * factors(kq, normalise))[:, :, None].expand(-1, -1, each, -1, -1).reshape(-1, 2, width)
    v, g, beta = (tensor.to(dtype).reshape(batch * heads, 1, -1) for tensor in (v, g, beta))
    key, query = kq.split(1, dim=1)
    flat = state.view(-1, width, size).mul_(g.exp())
    delta = torch.baddbmm(v, key, flat, alpha=-1).mul_(beta)
    flat.baddbmm_(key.mT, delta)
    return torch.bmm(query, flat).mul_(width**-0.5).view(batch, heads, size)


def continued_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None,
    normalise: bool = False,
) -> tuple[Tensor, Replay]:
    """`gated_delta_rule` without gradients, and the state after any number of the tokens instead of the last one.

    The arguments are those of `gated_delta_rule`. Time and memory grow with the square of the number of tokens.

    Returns:
        o, [batch, time, heads, value_dim], and the replay of states like `initial_state`.
    """
    (batch, time, heads, size), (key_heads, width) = v.shape, k.shape[2:]
    dtype = torch.promote_types(v.dtype, torch.float32)
    q, k, v, g, beta = (each.to(dtype) for each in (q, k, v, g, beta))
    state = v.new_zeros(batch, heads, width, size) if initial_state is None else initial_state.to(dtype)
    decays = FewDecays(g)
    k_g = (k * factors(k, normalise)).transpose(1, 2)
    q_g = (q * (factors(q, normalise) * width**-0.5)).transpose(1, 2)
    kq = torch.cat([k_g, q_g], dim=2)

    weighted = decays.pairwise().mul_(beta.mT[..., None, :]).unflatten(1, (key_heads, -1))
    of_keys, of_queries = (kq @ k_g.mT)[:, :, None].split(time, dim=3)
    reads = kq[:, :, None] @ state.unflatten(1, (key_heads, -1))
    reads = reads.flatten(1, 2).unflatten(2, (2, time)).mul_(decays.from_start[:, :, None, :, None])
    error = v.transpose(1, 2) - reads[:, :, 0]
    # Only what is below the diagonal is read.
    delta = torch.linalg.solve_triangular((weighted * of_keys).flatten(1, 2), error, upper=False, unitriangular=True)
    o = (weighted * of_queries).flatten(1, 2) @ delta + reads[:, :, 1]

    def state_after(counts: Tensor) -> Tensor:
        through, to_end = decays.until(counts)
        weights = (to_end * beta.mT).unflatten(1, (key_heads, -1))
        keys = (k_g[:, :, None] * weights[..., None]).flatten(1, 2)
        return (keys.mT @ delta).addcmul_(state, through[..., None, None])

    return o.transpose(1, 2).contiguous(), state_after
