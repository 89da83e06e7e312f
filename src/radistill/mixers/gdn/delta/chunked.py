"""The gated delta rule in chunks of the sequence, with its gradient written out.

The rule reads from the state what it holds under a key, and writes the difference to the value that should be there.
Inside a chunk of tokens that is a triangular system, between chunks the state carries it on (arXiv 2412.06464). The
names below are those of one chunk of one head; `state` maps keys to values, [p, n], and is the one at its start:

    cum_i              sum of the log-decays g up to and including token i
    decay_ij           exp(cum_i - cum_j) for i >= j, else 0
    error_i            v_i - exp(cum_i) state k_i, what the state alone leaves to be learnt
    delta              (I + M)^-1 error, with M_ij = (k_i . k_j) decay_ij beta_j for i > j
    o_i                exp(cum_i) state q_i + sum_j (q_i . k_j) decay_ij beta_j delta_j
    next state         exp(cum_last) state + sum_j beta_j exp(cum_last - cum_j) delta_j k_j

Legend of shapes: b batch, c chunks, k = c b, l tokens of a chunk, g key heads, r value heads of a key head, h = g r
value heads, n key size, p value size. Keys are never repeated for their value heads: products with a state take all
value heads of a key head as one wide matrix, [r p, n]. Values and all that is in their place have tokens innermost,
[k h, p, l], so that this layout is also the wide one, [k g, r p, l]. Chunks are outermost: what the loop over them
takes is one piece of memory.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from radistill.mixers.fast.chunks import Chunks, crossing, pairwise, sum_before, sum_from, without_subnormals

CHUNK = 64

# Triangular blocks of this size are inverted row by row, larger ones by products of their quarters.
_BLOCK = 8

# Added to the square of a norm, as transformers and flash-linear-attention have it.
_EPS = 1e-6


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    normalise: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run `state = exp(g) state; state = state + beta k (v - k state); o = q state / sqrt(key_dim)` over a sequence.

    Numbers below float32 are computed, and returned, in float32.

    Args:
        q, k: [batch, time, key_heads, key_dim].
        v: [batch, time, heads, value_dim]; a key head serves `heads / key_heads` consecutive heads.
        g: [batch, time, heads], logarithms of decays; not above 0.
        beta: [batch, time, heads].
        initial_state: [batch, heads, key_dim, value_dim]; zero if None.
        normalise: divide each query and key by `sqrt(its square + 1e-6)` first.
        chunk: tokens of a chunk, a power of two, which changes the speed but not the function.

    Returns:
        o, [batch, time, heads, value_dim], and the last state, [batch, heads, key_dim, value_dim].
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    inputs = [None if each is None else each.to(dtype) for each in (q, k, v, g, beta, initial_state)]
    # Short sequences are one chunk that is no longer than it must be.
    o, state = _GatedDeltaRule.apply(*inputs, normalise, min(chunk, 1 << (q.shape[1] - 1).bit_length()))
    return o, state


class _GatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        q, k, v, g, beta, initial_state, normalise, chunk = given
        sizes = _Sizes(v, k, chunk)
        decays = _Decays(g, sizes)
        beta_h = sizes.by_head(beta)
        k_factor, q_factor = factors(k, normalise), factors(q, normalise).mul_(k.shape[-1] ** -0.5)
        kq = sizes.by_key_head(k, k_factor, q, q_factor)

        # Inside the chunks.
        decay = decays.pairwise()
        scores = torch.bmm(kq.flatten(0, 1), kq[:, :, :chunk].flatten(0, 1).mT)
        keys, queries = sizes.for_heads(scores)
        weighted = decay * beta_h[..., None, :]
        matrix = (weighted * queries).flatten(0, 2)
        weighted.diagonal(dim1=-2, dim2=-1).zero_()
        inverse = _inverse(weighted.mul_(keys).flatten(0, 2))

        # From chunk to chunk.
        values = sizes.by_value_head(v)
        reads, deltas = values.new_empty(*values.shape[:-1], 2 * chunk), torch.empty_like(values)
        states = v.new_empty(sizes.c + 1, sizes.b, sizes.h, sizes.p, sizes.n)
        states[0] = 0 if initial_state is None else initial_state.mT
        inverses, weights, scaled = sizes.chunks(inverse), decays.to_end * beta_h, torch.empty_like(values[0])
        for i in range(sizes.c):
            torch.bmm(sizes.wide(states[i]), kq[i].mT, out=sizes.wide(reads[i]))
            error = values[i].addcmul_(reads[i, ..., :chunk], sizes.tokens(decays.from_start[i]), value=-1)
            torch.bmm(error, inverses[i].mT, out=deltas[i])
            torch.mul(deltas[i], sizes.tokens(weights[i]), out=scaled)
            torch.mul(states[i], decays.through[i], out=states[i + 1])
            sizes.wide(states[i + 1]).baddbmm_(sizes.wide(scaled), kq[i, :, :chunk])

        # Buffers that have served are used again, here and below: writing to fresh memory can cost more than a product.
        outputs = torch.bmm(deltas.flatten(0, 1), matrix.mT, out=values.flatten(0, 1)).view_as(values)
        outputs.addcmul_(reads[..., chunk:], sizes.tokens(decays.from_start))
        o = sizes.by_token_of_values(outputs)

        ctx.save_for_backward(g, beta, k_factor, q_factor, kq, decay, scores, matrix, inverse, reads, deltas, states)
        ctx.sizes, ctx.normalise, ctx.has_initial_state = sizes, normalise, initial_state is not None
        return o, states[-1].mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        g, beta, k_factor, q_factor, kq, decay, scores, matrix, inverse, reads, deltas, states = ctx.saved_tensors
        sizes: _Sizes = ctx.sizes
        chunk = sizes.l
        decays = _Decays(g, sizes)
        beta_h = sizes.by_head(beta)
        columns, weights = beta_h[..., None, :], decays.to_end * beta_h

        # What the outputs take from the deltas of their chunk, and read from the state at its start.
        do_h = sizes.by_value_head(do)
        ddeltas = torch.bmm(do_h.flatten(0, 1), matrix).view_as(deltas)
        dmatrix = torch.bmm(do_h.flatten(0, 1).mT, deltas.flatten(0, 1)).view_as(decay)
        dreads = torch.empty_like(reads)
        torch.mul(do_h, sizes.tokens(decays.from_start), out=dreads[..., chunk:])

        # From chunk to chunk, backwards; `dstates[i]` belongs to the state at the start of chunk i. What the next
        # chunk need not wait for is left for after the loop, where it is a few large operations.
        dstates, dscaled, derrors = torch.empty_like(states), torch.empty_like(deltas), do_h
        dstates[-1] = dlast.mT
        inverses, from_start = sizes.chunks(inverse), -decays.from_start
        for i in reversed(range(sizes.c)):
            torch.bmm(sizes.wide(dstates[i + 1]), kq[i, :, :chunk].mT, out=sizes.wide(dscaled[i]))
            ddelta = ddeltas[i].addcmul_(dscaled[i], sizes.tokens(weights[i]))
            torch.bmm(ddelta, inverses[i], out=derrors[i])
            torch.mul(derrors[i], sizes.tokens(from_start[i]), out=dreads[i, ..., :chunk])
            torch.mul(dstates[i + 1], decays.through[i], out=dstates[i])
            sizes.wide(dstates[i]).baddbmm_(sizes.wide(dreads[i]), kq[i])
        scaled = torch.mul(deltas, sizes.tokens(weights), out=ddeltas)
        dkq = torch.bmm(sizes.wide(dreads).mT, sizes.wide(states[:-1]))
        dkq[:, :chunk] += torch.bmm(sizes.wide(scaled).mT, sizes.wide(dstates[1:]))
        added = dscaled.mul_(deltas).sum(-2).view_as(beta_h)
        whole = dstates[1:].mul_(states[:-1]).sum((-2, -1)).view_as(beta_h[..., 0])
        read = dreads.mul_(reads).sum(-2)

        # Inside the chunks.
        keys, queries = sizes.for_heads(scores)
        dsystem = torch.bmm(derrors.flatten(0, 1).mT, deltas.flatten(0, 1)).neg_().view_as(decay)
        dscores = torch.empty_like(scores)
        dkeys, dqueries = sizes.for_heads(dscores)
        dscored = dmatrix.mul_(decay)
        exponents = dscored * queries
        torch.sum(dscored.mul_(columns), 2, keepdim=True, out=dqueries)
        dscored = dsystem.mul_(decay)
        dscored.diagonal(dim1=-2, dim2=-1).zero_()
        exponents.addcmul_(dscored, keys)
        torch.sum(dscored.mul_(columns), 2, keepdim=True, out=dkeys)
        dkq.baddbmm_(dscores, kq[:, :, :chunk].flatten(0, 1))
        dkq[:, :chunk] += torch.bmm(dscores.mT, kq.flatten(0, 1))

        # A weight has its gradient from its column; a log-decay from all that was carried across its token.
        dbeta = exponents.sum(-2).addcmul_(added, decays.to_end)
        read = (read[..., :chunk] + read[..., chunk:]).view_as(beta_h)
        dg = crossing(exponents.mul_(columns)).add_(sum_from(read)).add_(sum_before(added.mul_(weights)))
        dg += whole.mul_(decays.through.view_as(whole))[..., None]
        dk, dq = sizes.by_key_token(dkq.view_as(kq), kq, k_factor, q_factor, ctx.normalise)
        dv, dg, dbeta = sizes.by_token_of_values(derrors), sizes.by_token(dg), sizes.by_token(dbeta)
        return dq, dk, dv, dg, dbeta, dstates[0].mT if ctx.has_initial_state else None, None, None


class _Sizes(Chunks):
    """The layouts between which activations move. Every layout is a copy; see the legend of this file."""

    def by_key_head(self, k: Tensor, k_factor: Tensor, q: Tensor, q_factor: Tensor) -> Tensor:
        """[b, t, g, n], times factors [b, t, g, 1], as [c, b g, 2 l, n]: the keys of a chunk, then its queries."""
        result = k.new_empty(self.c, self.b, self.g, 2, self.l, self.n)
        by_token = result.permute(3, 1, 0, 4, 2, 5)
        for target, tokens, factor in zip(by_token, (k, q), (k_factor, q_factor), strict=True):
            torch.mul(self.filled(tokens), self.filled(factor), out=target)
        return result.view(self.c, -1, 2 * self.l, self.n)

    def by_key_token(
        self, dkq: Tensor, kq: Tensor, k_factor: Tensor, q_factor: Tensor, normalise: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of keys and queries, [b, t, g, n] each, from that of what `by_key_head` returned."""
        if normalise:  # a change along a unit vector does not count
            along = (dkq * kq).sum(-1, keepdim=True)
            along[:, :, self.l :] *= self.n
            dkq.addcmul_(kq, along, value=-1)
        by_token = dkq.view(self.c, self.b, self.g, 2, self.l, self.n).permute(3, 1, 0, 4, 2, 5)
        dk, dq = (
            (tokens * self.filled(factor)).flatten(1, 2)[:, : self.t]
            for tokens, factor in zip(by_token, (k_factor, q_factor), strict=True)
        )
        return dk, dq

    def by_value_head(self, tokens: Tensor) -> Tensor:
        """[b, t, h, p] as [c, b h, p, l]."""
        result = tokens.new_empty(self.c, self.b, self.h, self.p, self.l)
        result.permute(1, 0, 4, 2, 3).copy_(self.filled(tokens))
        return result.flatten(1, 2)

    def by_token_of_values(self, heads: Tensor) -> Tensor:
        """Undo `by_value_head`."""
        result = heads.new_empty(self.b, self.c, self.l, self.h, self.p)
        result.permute(1, 0, 3, 4, 2).copy_(heads.view(self.c, self.b, self.h, self.p, self.l))
        return result.flatten(1, 2)[:, : self.t]

    def by_head(self, tokens: Tensor) -> Tensor:
        """[b, t, h] as [c, b g, r, l]."""
        return self.filled(tokens).permute(1, 0, 3, 2).contiguous().view(self.c, -1, self.r, self.l)

    def by_token(self, heads: Tensor) -> Tensor:
        """Undo `by_head`."""
        return heads.view(self.c, self.b, self.h, self.l).permute(1, 0, 3, 2).flatten(1, 2)[:, : self.t]

    def chunks(self, tensors: Tensor) -> Tensor:
        """[c ..., l, size] as [c, ..., l, size]."""
        return tensors.unflatten(0, (self.c, -1))

    def wide(self, values: Tensor) -> Tensor:
        """[b h, p, ...] or [b, h, p, ...] as [b g, r p, ...]."""
        return values.view(-1, self.r * self.p, values.shape[-1])

    def tokens(self, numbers: Tensor) -> Tensor:
        """[..., b g, r, l] as [..., b h, 1, l], which broadcasts over values."""
        return numbers.flatten(-3, -2).unsqueeze(-2)

    def for_heads(self, scores: Tensor) -> Iterable[Tensor]:
        """[k g, 2 l, l] as [c, b g, 1, l, l] of keys and of queries, which broadcast over the heads of a key head."""
        return scores.view(self.c, -1, 1, 2, self.l, self.l).unbind(3)


class _Decays:
    """Everything that depends on the log-decays alone.

    Attributes:
        from_start: decay from the start of the chunk through each token, [c, b g, r, l].
        to_end: decay from after each token to the end of its chunk, [c, b g, r, l].
        through: decay of a whole chunk, [c, b, h, 1, 1].
    """

    def __init__(self, g: Tensor, sizes: _Sizes) -> None:
        # Sums of log-decays grow large where the decay is strong, and what counts are small differences between them.
        self._cum = sizes.by_head(g).cumsum(-1, dtype=torch.float64)
        self._dtype = g.dtype
        end = self._cum[..., -1:]
        self.from_start = without_subnormals(self._cum.to(g.dtype).exp())
        self.to_end = without_subnormals((end - self._cum).to(g.dtype).exp())
        self.through = self.from_start[..., -1].view(sizes.c, sizes.b, sizes.h, 1, 1)

    def pairwise(self) -> Tensor:
        """decay_ij, [c, b g, r, l, l]."""
        return pairwise(self._cum, self._cum, self._dtype)


def factors(x: Tensor, normalise: bool) -> Tensor:
    """One over the norm of each vector, [b, t, g, 1], or ones."""
    if not normalise:
        return x.new_ones(*x.shape[:-1], 1)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(_EPS).rsqrt_()


def _inverse(system: Tensor) -> Tensor:
    """Inverse of the identity plus a strictly lower triangular matrix, [n, l, l]; l is a power of two.

    A triangular matrix has the inverses of its diagonal blocks A and C in their places, and below, with B there,
    `-C^-1 B A^-1`. So products of ever larger blocks take the place of a substitution row by row, which is only done
    inside the smallest, for all of them at once.
    """
    n, l = system.shape[:2]  # noqa: E741
    size = min(l, _BLOCK)
    rows = system.view(n, l // size, size, l // size, size).diagonal(dim1=1, dim2=3).permute(1, 2, 0, 3).contiguous()
    solved = torch.eye(size, dtype=system.dtype)[..., None, None].expand_as(rows).clone()
    for i in range(1, size):
        solved[i, :i] = (rows[i, :i, None] * solved[:i, :i]).sum(0).neg_()
    blocks = solved.permute(2, 3, 0, 1).contiguous()
    while size < l:
        first, last = blocks[:, ::2], blocks[:, 1::2]
        below = system.view(n, l // (2 * size), 2 * size, -1, 2 * size).diagonal(dim1=1, dim2=3)
        below = below[:, size:, :size].permute(0, 3, 1, 2)
        blocks = system.new_zeros(n, l // (2 * size), 2 * size, 2 * size)
        blocks[..., :size, :size], blocks[..., size:, size:] = first, last
        blocks[..., size:, :size] = (last @ (below @ first)).neg_()
        size *= 2
    return blocks.view(n, l, l)
