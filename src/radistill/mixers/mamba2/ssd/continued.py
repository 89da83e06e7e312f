"""Mamba-2's recurrence over the few tokens of a verification: one chunk, whose state is left for later."""

import torch
import torch.nn.functional as F
from torch import Tensor

from radistill.mixers.fast.replay import FewDecays, Replay


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

    Args:
        x: [batch, time, heads, head_dim]. Time and memory grow with the square of `time`.
        dt: [batch, time, heads].
        A, D, dt_bias: [heads]; A is negative.
        B, C: [batch, time, groups, state]; a group serves `heads / groups` consecutive heads.
        initial_state: [batch, heads, head_dim, state]; zero if None.

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
    return y.transpose(1, 2).contiguous(), _ContinuedScan(x, step, b_g, decays, state)


class _ContinuedScan:
    def __init__(self, x: Tensor, step: Tensor, b_g: Tensor, decays: FewDecays, state: Tensor) -> None:
        self._x, self._step, self._b_g, self._decays, self._state = x, step, b_g, decays, state

    def state_after(self, counts: Tensor) -> Tensor:
        through, to_end = self._decays.until(counts)
        weighted = self._x * (to_end.mT * self._step)[..., None]
        groups = self._b_g.shape[1]
        added = weighted.unflatten(2, (groups, -1)).flatten(3).permute(0, 2, 3, 1) @ self._b_g
        return added.view_as(self._state).addcmul_(self._state, through[..., None, None])
