"""Mamba-2's recurrence over one token, to decode, or over the few of a verification, whose state is left for later."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radistill.mixers.fast.convolution import convolution_step
from radistill.mixers.fast.replay import FewDecays, Replay


def block_step(block: Any, hidden_states: Tensor, memory: Tensor, state: Tensor) -> Tensor:
    """A whole block of transformers, whose own step costs more in calls of small operations than in arithmetic.

    Args:
        block: GraniteMoeHybridMambaLayer.
        hidden_states: [batch, 1, hidden].
        memory: of the convolution, [batch, channels, taps]; changed in place, as the state is.
        state: [batch, heads, head_dim, state], contiguous.

    Returns:
        [batch, 1, hidden].
    """
    (batch, heads, size, width), inner = state.shape, block.intermediate_size
    gate, mixed, dt = block.in_proj(hidden_states).split([inner, block.conv_dim, heads], dim=-1)
    mixed = convolution_step(mixed[:, 0], memory, block.conv1d.weight[:, 0], block.conv1d.bias)
    x, *b_and_c = mixed.split([inner, block.n_groups * width, block.n_groups * width], dim=-1)
    B, C = (each.view(batch, -1, width) for each in b_and_c)
    A = block.A_log.float().exp().neg_()
    y = scan_step(state, x.view(batch, heads, size), dt[:, 0], A, B, C, D=block.D, dt_bias=block.dt_bias)
    y = block.norm(y.view(batch, 1, inner).to(hidden_states.dtype), gate)
    result: Tensor = block.out_proj(y)
    return result


def scan_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """One step of `chunked_scan`, without gradients. The state is changed in place.

    Steps, decays and D are one number a head, and B and C serve a whole group, so nothing is repeated over the state.

    Args:
        state: [batch, heads, head_dim, state], contiguous.
        x: [batch, heads, head_dim].
        dt: [batch, heads].
        A, D, dt_bias: [heads]; A is negative.
        B, C: [batch, groups, state]; a group serves `heads / groups` consecutive heads.

    Returns:
        y, [batch, heads, head_dim], in the type of the state.
    """
    dtype, (batch, groups, width) = state.dtype, B.shape
    if x.dtype != dtype:
        x, dt, A, B, C, D, dt_bias = (each.to(dtype) for each in (x, dt, A, B, C, D, dt_bias))
    step = F.softplus(dt + dt_bias)
    state.mul_((step * A).exp_()[..., None, None])
    wide = state.view(batch * groups, -1, width)
    wide.baddbmm_((x * step[..., None]).view(batch * groups, -1, 1), B.reshape(batch * groups, 1, width))
    y = torch.bmm(wide, C.reshape(batch * groups, width, 1)).view(x.shape)
    return y.addcmul_(x, D[:, None])


def continued_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Replay]:
    """`chunked_scan` without gradients, and the state after any number of the tokens instead of the last one.

    The arguments are those of `chunked_scan`. Time and memory grow with the square of the number of tokens.

    Returns:
        y, [batch, time, heads, head_dim], and the replay of states like `initial_state`.
    """
    (batch, time, heads, size), (groups, width) = x.shape, B.shape[2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dt, B, C = (each.to(dtype) for each in (x, dt, B, C))
    state = x.new_zeros(batch, heads, size, width) if initial_state is None else initial_state.to(dtype)
    step = F.softplus(dt + dt_bias.to(dtype))
    decays = FewDecays(step * A.to(dtype))
    b_g, c_g = B.transpose(1, 2), C.transpose(1, 2)
    # All heads of a group share its matrix of scores, and read the state by one product.
    matrix = decays.pairwise().mul_(step.mT[..., None, :])
    matrix.unflatten(1, (groups, -1)).mul_((c_g @ b_g.mT)[:, :, None])
    matrix.diagonal(dim1=-2, dim2=-1).add_(D.to(dtype)[:, None])
    y = matrix @ x.transpose(1, 2)
    outside = (c_g @ state.view(batch, groups, -1, width).mT).view(batch, groups, time, -1, size)
    y.unflatten(1, (groups, -1)).addcmul_(
        outside.transpose(2, 3), decays.from_start.view(batch, groups, -1, time)[..., None]
    )

    def state_after(counts: Tensor) -> Tensor:
        through, to_end = decays.until(counts)
        weighted = x * (to_end.mT * step)[..., None]
        added = weighted.unflatten(2, (groups, -1)).flatten(3).permute(0, 2, 3, 1) @ b_g
        return added.view_as(state).addcmul_(state, through[..., None, None])

    return y.transpose(1, 2).contiguous(), state_after
