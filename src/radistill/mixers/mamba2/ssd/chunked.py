"""The scan of Mamba-2 in chunks of the sequence, with its gradient written out.

Inside a chunk the recurrence is a lower triangular matrix per head, between chunks it is carried by the state; both are
matrix products. The names below are those of one chunk:

    step_j             softplus(dt_j + dt_bias), the weight of token j
    cum_i              sum of the log-decays step A up to and including token i
    decay_ij           step_j exp(cum_i - cum_j) for i >= j, else 0
    scores_ij          C_i . B_j, one matrix for all heads of a group
    y_i                sum_j scores_ij decay_ij x_j + exp(cum_i) state C_i + D x_i
    next state         exp(cum_last) state + sum_j step_j exp(cum_last - cum_j) x_j B_j

Legend of shapes: b batch, c chunks, k = b c, l tokens of a chunk, g groups, r heads of a group, h = g r heads, p head
size, n state size. Groups are never repeated for their heads: what their heads have in common is computed once, and
products that serve a whole group take its heads as one wide matrix.

Steps enter through their logarithm, added to the exponents. So a weight costs no pass over a matrix, and its gradient
is a sum that needs no division by a step that may be 0.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from radistill.mixers.fast.chunks import Chunks, crossing, pairwise, sum_before, sum_from

CHUNK = 64

# Numbers of the decays of a piece that is finished before the next one is read, where no gradient is wanted.
_PIECE = 1 << 19

# Below this, softplus(v) = exp(v) to the last bit of a float64.
_TAIL = -40.0

# Logarithm of a step that is nothing, such as that of the filling after the last token. Infinities would breed NaNs.
_NEVER = -1e4


def chunked_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run Mamba-2's recurrence over a sequence: `state = exp(step A) state + step x B`, `y = C state + D x`.

    `step` is `softplus(dt + dt_bias)`. Numbers below float32 are computed, and returned, in float32.

    Args:
        x: [batch, time, heads, head_dim].
        dt: [batch, time, heads].
        A, D, dt_bias: [heads]; A is negative.
        B, C: [batch, time, groups, state]; a group serves `heads / groups` consecutive heads.
        initial_state: [batch, heads, head_dim, state]; zero if None.
        dt_limit: the step is clamped to this range.
        chunk: tokens of a chunk, which changes the speed but not the function.

    Returns:
        y, [batch, time, heads, head_dim], and the last state, [batch, heads, head_dim, state].
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C, D, dt_bias = (each.to(dtype) for each in (x, dt, A, B, C, D, dt_bias))
    state: Any = None if initial_state is None else initial_state.to(dtype)
    # Where no gradient is wanted, piece by piece, so that what is done to a piece finds it in the cache.
    piece = x.shape[1] if torch.is_grad_enabled() else chunk * max(1, _PIECE // (x.shape[0] * x.shape[2] * chunk**2))
    outputs = []
    for start in range(0, x.shape[1], piece):
        x_p, dt_p, B_p, C_p = (each[:, start : start + piece] for each in (x, dt, B, C))
        size = min(chunk, x_p.shape[1])
        y, state = _ChunkedScan.apply(x_p, dt_p, A, B_p, C_p, D, dt_bias, state, dt_limit, size)
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, D, dt_bias, initial_state, dt_limit, chunk = given
        sizes = _Sizes(x, B, chunk)
        steps = _Steps(dt, A, dt_bias, dt_limit, sizes)
        x_h, b_g, c_g = sizes.by_head(x), sizes.by_head(B), sizes.by_head(C)

        scores = torch.bmm(c_g, b_g.mT)
        decay = steps.decay()
        inside = torch.bmm(_weighted(decay, scores, D, sizes), x_h)

        # Buffers that have served are used again, here and below: writing to fresh memory can cost more than a product.
        weighted = sizes.by_group(x_h, steps.to_end)
        states = sizes.as_states(torch.bmm(weighted.mT, b_g))
        last = _carry(states, steps.through, initial_state)
        outside = torch.bmm(c_g, sizes.as_wide(states).mT, out=weighted)
        y = sizes.joined(inside, outside, steps.from_start)

        ctx.save_for_backward(x_h, dt, A, b_g, c_g, D, dt_bias, decay, scores, states, outside)
        ctx.dt_limit, ctx.sizes, ctx.has_initial_state = dt_limit, sizes, initial_state is not None
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        x_h, dt, A, b_g, c_g, D, dt_bias, decay, scores, states, outside = ctx.saved_tensors
        sizes: _Sizes = ctx.sizes
        steps = _Steps(dt, A, dt_bias, ctx.dt_limit, sizes)
        dy_h = sizes.by_head(dy)

        # Inside the chunks.
        matrix = _weighted(decay, scores, D, sizes)
        dinside = torch.bmm(matrix.mT, dy_h)
        dmatrix = torch.bmm(dy_h, x_h.mT, out=matrix).view_as(decay)
        dD = dmatrix.diagonal(dim1=-2, dim2=-1).sum((0, 3)).flatten()
        dscored = dmatrix.mul_(decay)
        dscores = dscored.sum(2).view_as(scores)
        dexponent = dscored.mul_(sizes.for_heads(scores))
        dC, dB = torch.bmm(dscores, b_g), torch.bmm(dscores.mT, c_g)

        # Between the chunks: what is read from a state, the state itself, what is added to it.
        dread = sizes.by_group(dy_h, steps.from_start)
        dC.baddbmm_(dread, sizes.as_wide(states))
        dstates = sizes.as_states(torch.bmm(dread.mT, c_g))
        read = sizes.sum_of_heads(dread.mul_(outside))
        dinitial = _carry_back(dstates, steps.through, dlast)
        weighted = sizes.by_group(x_h, steps.to_end)
        dB.baddbmm_(weighted, sizes.as_wide(dstates))
        dweighted = torch.bmm(b_g, sizes.as_wide(dstates).mT, out=dread)
        dx = sizes.joined(dinside, dweighted, steps.to_end)
        added = sizes.sum_of_heads(weighted.mul_(dweighted))

        # Exponents: the gradient of a log-decay sums all that was carried across its token, from earlier to later ones.
        whole = (
            torch.linalg.vecdot(states.flatten(-2), dstates.flatten(-2)).view(steps.through.shape).mul_(steps.through)
        )
        dlog_step = dexponent.sum(-2).add_(added)
        dlog_decay = crossing(dexponent).add_(sum_from(read)).add_(sum_before(added))
        ddt, dA = steps.backward(dlog_step, dlog_decay.add_(whole.view(*read.shape[:-1], 1)))
        dB, dC = sizes.by_token(dB), sizes.by_token(dC)
        return dx, ddt, dA, dB, dC, dD, ddt.sum((0, 1)), dinitial if ctx.has_initial_state else None, None, None


class _Sizes(Chunks):
    """The layouts between which activations move; see the legend of this file."""

    def by_head(self, tokens: Tensor) -> Tensor:
        """[b, t, heads or groups, size] as [k heads or groups, l, size]."""
        return self.filled(tokens).transpose(2, 3).contiguous().flatten(0, 2)

    def by_token(self, grouped: Tensor) -> Tensor:
        """Undo `by_head` for groups."""
        tokens = grouped.view(self.b, self.c, self.g, self.l, -1).transpose(2, 3)
        return tokens.reshape(self.b, self.c * self.l, self.g, -1)[:, : self.t]

    def by_group(self, heads: Tensor, factor: Tensor) -> Tensor:
        """[k h, l, p], times a factor [k, g, r, l] of each token, as [k g, l, r p]."""
        result = heads.new_empty(self.b * self.c, self.g, self.l, self.r, self.p)
        scaled = result.transpose(2, 3)
        torch.mul(heads.view(scaled.shape), factor.view(*scaled.shape[:-1], 1), out=scaled)
        return result.view(-1, self.l, self.r * self.p)

    def joined(self, heads: Tensor, groups: Tensor, factor: Tensor) -> Tensor:
        """[k h, l, p] plus a factor [k, g, r, l] of each token times [k g, l, r p], as [b, t, h, p]."""
        result = heads.new_empty(self.b * self.c, self.l, self.g, self.r, self.p)
        first = heads.view(-1, self.g, self.r, self.l, self.p).permute(0, 3, 1, 2, 4)
        second = groups.view(-1, self.g, self.l, self.r, self.p).transpose(1, 2)
        by_token = factor.view(-1, self.g, self.r, self.l).permute(0, 3, 1, 2)
        torch.addcmul(first, second, by_token[..., None], out=result)
        return result.view(self.b, self.c * self.l, self.h, self.p)[:, : self.t]

    def for_heads(self, scores: Tensor) -> Tensor:
        """[k g, l, l] as [k, g, 1, l, l], which broadcasts over the heads of a group."""
        return scores.view(-1, self.g, 1, self.l, self.l)

    def as_states(self, wide: Tensor) -> Tensor:
        """[k g, r p, n] as [b, c, h, p, n]."""
        return wide.view(self.b, self.c, self.h, self.p, self.n)

    def as_wide(self, states: Tensor) -> Tensor:
        """Undo `as_states`."""
        return states.view(-1, self.r * self.p, self.n)

    def sum_of_heads(self, groups: Tensor) -> Tensor:
        """Sum over p of [k g, l, r p], as [k, g, r, l]."""
        return groups.view(-1, self.g, self.l, self.r, self.p).sum(-1).mT


class _Steps:
    """Everything that depends on the steps alone: a number per token and head, [k, g, r, l].

    Attributes:
        from_start: decay from the start of the chunk through each token.
        to_end: what is left of a token at the end of its chunk, its step included.
        through: decay of a whole chunk, [b, c, h, 1, 1].
    """

    def __init__(self, dt: Tensor, A: Tensor, dt_bias: Tensor, limit: tuple[float, float], sizes: _Sizes) -> None:
        self._sizes, self._A, self._raw = sizes, A, dt + dt_bias
        softplus = F.softplus(self._raw)
        self._step = softplus.clamp(*limit)
        self._free = self._step == softplus
        log_step = torch.where(self._free & (self._raw < _TAIL), self._raw, self._step.log()).clamp_(min=_NEVER)
        # Sums of log-decays grow large where the decay is strong, and what counts are small differences between them.
        self._cum = self._by_head(self._step * A).cumsum(-1, dtype=torch.float64)
        self._source = self._cum - self._by_head(log_step, filling=_NEVER)
        end = self._cum[..., -1:]
        self.from_start = self._cum.to(dt.dtype).exp()
        self.to_end = (end - self._source).to(dt.dtype).exp()
        self.through = end.to(dt.dtype).exp().view(sizes.b, sizes.c, sizes.h, 1, 1)

    def decay(self) -> Tensor:
        """decay_ij, [k, g, r, l, l]."""
        return pairwise(self._cum, self._source, self.from_start.dtype)

    def backward(self, dlog_step: Tensor, dlog_decay: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of dt, [b, t, h], and of A, [h], from those of the logarithms, [k, g, r, l]."""
        dlog_step, dlog_decay = self._by_token(dlog_step), self._by_token(dlog_decay)
        decayed = dlog_decay * self._step
        # d log softplus(v) / d v, which goes to 1 where softplus(v) goes to 0.
        slope = torch.where(self._raw < _TAIL, 1.0, torch.sigmoid(self._raw) / F.softplus(self._raw))
        ddt = (dlog_step + decayed * self._A) * slope * self._free
        return ddt, decayed.sum((0, 1))

    def _by_head(self, tokens: Tensor, filling: float = 0.0) -> Tensor:
        """[b, t, h] as [k, g, r, l]."""
        sizes = self._sizes
        return sizes.filled(tokens, filling).mT.reshape(-1, sizes.g, sizes.r, sizes.l)

    def _by_token(self, heads: Tensor) -> Tensor:
        """Undo `_by_head`."""
        sizes = self._sizes
        return heads.reshape(sizes.b, sizes.c, sizes.h, sizes.l).mT.flatten(1, 2)[:, : sizes.t]


def _weighted(decay: Tensor, scores: Tensor, D: Tensor, sizes: _Sizes) -> Tensor:
    """The matrix that takes the tokens of a chunk to its outputs, [k h, l, l]."""
    matrix = decay * sizes.for_heads(scores)
    matrix.diagonal(dim1=-2, dim2=-1).add_(D.view(sizes.g, sizes.r, 1))
    return matrix.view(-1, sizes.l, sizes.l)


def _carry(states: Tensor, through: Tensor, initial: Tensor | None) -> Tensor:
    """Turn what each chunk adds to the state, [b, c, h, p, n], into the state at its start, in place.

    Returns the last state, [b, h, p, n].
    """
    state = torch.zeros_like(states[:, 0]) if initial is None else initial.clone()
    for number in range(states.shape[1]):
        following = torch.addcmul(states[:, number], through[:, number], state)
        states[:, number] = state
        state = following
    return state


def _carry_back(dstates: Tensor, through: Tensor, dlast: Tensor) -> Tensor:
    """Turn the gradients of the states that chunks read, [b, c, h, p, n], into those of what they add, in place.

    Returns the gradient of the initial state, [b, h, p, n].
    """
    dstate = dlast
    for number in reversed(range(dstates.shape[1])):
        earlier = torch.addcmul(dstates[:, number], through[:, number], dstate)
        dstates[:, number] = dstate
        dstate = earlier
    return dstate
