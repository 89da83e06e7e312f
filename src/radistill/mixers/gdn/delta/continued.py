"""The gated delta rule over the few tokens of a verification: one chunk, whose state is left for later."""

import torch
from torch import Tensor

from radistill.mixers.fast.replay import FewDecays, Replay
from radistill.mixers.gdn.delta.chunked import factors


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

    Args:
        q, k: [batch, time, key_heads, key_dim]. Time and memory grow with the square of `time`.
        v: [batch, time, heads, value_dim]; a key head serves `heads / key_heads` consecutive heads.
        g: [batch, time, heads], logarithms of decays; not above 0.
        beta: [batch, time, heads].
        initial_state: [batch, heads, key_dim, value_dim]; zero if None.
        normalise: divide each query and key by `sqrt(its square + 1e-6)` first.

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
    return o.transpose(1, 2).contiguous(), _ContinuedRule(k_g, delta, beta, decays, state)


class _ContinuedRule:
    def __init__(self, k_g: Tensor, delta: Tensor, beta: Tensor, decays: FewDecays, state: Tensor) -> None:
        self._k_g, self._delta, self._beta, self._decays, self._state = k_g, delta, beta, decays, state

    def state_after(self, counts: Tensor) -> Tensor:
        through, to_end = self._decays.until(counts)
        weights = (to_end * self._beta.mT).unflatten(1, (self._k_g.shape[1], -1))
        keys = (self._k_g[:, :, None] * weights[..., None]).flatten(1, 2)
        return (keys.mT @ self._delta).addcmul_(self._state, through[..., None, None])
