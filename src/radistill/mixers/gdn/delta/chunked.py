"""The gated delta rule in chunks of the sequence, with its gradient written out.

The rule reads from the state what it holds under a key, and writes the difference to the value that should be there.
Inside a chunk of tokens that is a triangular system, between chunks the state carries it on (arXiv 2412.06464). The
names below are those of one chunk of one head; `state` maps keys to values, [p, d], and is the one at its start:

    cum_i              sum of the log-decays g up to and including token i
    decay_ij           exp(cum_i - cum_j) for i >= j, else 0
    error_i            v_i - exp(cum_i) state k_i, what the state alone leaves to be learnt
    delta              (I + M)^-1 error, with M_ij = (k_i . k_j) decay_ij beta_j for i > j
    o_i                exp(cum_i) state q_i + sum_j (q_i . k_j) decay_ij beta_j delta_j
    next state         exp(cum_last) state + sum_j beta_j exp(cum_last - cum_j) delta_j k_j

Legend of shapes: b batch, c chunks, k = c b, l tokens of a chunk, g key heads, r value heads of a key head, h = g r
value heads, d key size, p value size. Keys are never repeated for their value heads: products with a state take all
value heads of a key head as one wide matrix, [r p, d]. Values and all that is in their place have tokens innermost,
[k h, p, l], so that this layout is also the wide one, [k g, r p, l]. Chunks are outermost: what the loop over them
takes is one piece of memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from radistill.mixers.fast.decay import crossing, pairwise, sum_before, sum_from

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
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None,
        normalise: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        sizes = _Sizes(k, v, chunk)
        decays = _Decays(g, sizes)
        beta_h = sizes.by_head(beta)
        q_factor, k_factor = _factors(q, normalise).mul_(k.shape[-1] ** -0.5), _factors(k, normalise)
        q_g, k_g = sizes.by_key_head(q, q_factor), sizes.by_key_head(k, k_factor)

        # Inside the chunks.
        decay = decays.pairwise()
        keys, queries = torch.bmm(k_g, k_g.mT), torch.bmm(q_g, k_g.mT)
        weighted = decay * beta_h[..., None, :]
        matrix = (weighted * sizes.for_heads(queries)).view(-1, chunk, chunk)
        system = weighted.tril_(-1).mul_(sizes.for_heads(keys)).view_as(matrix)
        inverse = _inverse(system)

        # From chunk to chunk.
        errors = sizes.by_value_head(v)
        reads, deltas = torch.empty_like(errors), torch.empty_like(errors)
        states = v.new_zeros(sizes.c + 1, sizes.b, sizes.h, sizes.p, sizes.d)
        if initial_state is not None:
            states[0] = initial_state.mT
        wide_states, wide_keys = sizes.wide_states(states), sizes.chunks(k_g)
        inverses, weights = sizes.chunks(inverse), decays.to_end * beta_h
        scaled = torch.empty_like(errors[0])
        for i in range(sizes.c):
            read = torch.bmm(wide_states[i], wide_keys[i].mT, out=sizes.wide(reads[i]))
            error = errors[i].addcmul_(read.view_as(scaled), sizes.tokens(decays.from_start[i]), value=-1)
            delta = torch.bmm(error, inverses[i].mT, out=deltas[i])
            torch.mul(delta, sizes.tokens(weights[i]), out=scaled)
            torch.mul(states[i], decays.through[i], out=states[i + 1])
            wide_states[i + 1].baddbmm_(sizes.wide(scaled), wide_keys[i])

        # Outputs have their tokens outermost again. Buffers that have served are used again, here and below: writing
        # to fresh memory can cost more than a product.
        inside = torch.bmm(matrix, deltas.flatten(0, 1).mT, out=errors.view(-1, chunk, sizes.p))
        outside = torch.bmm(q_g, wide_states[:-1].flatten(0, 1).mT)
        o = sizes.joined(inside, outside, decays.from_start)

        ctx.save_for_backward(
            g, beta, q_factor, k_factor, q_g, k_g, decay, keys, queries, inverse, reads, deltas, states, outside
        )
        ctx.sizes, ctx.normalise, ctx.has_initial_state = sizes, normalise, initial_state is not None
        return o, states[-1].mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        (
            g, beta, q_factor, k_factor, q_g, k_g, decay, keys, queries, inverse, reads, deltas, states, outside
        ) = ctx.saved_tensors  # fmt: skip
        sizes: _Sizes = ctx.sizes
        decays = _Decays(g, sizes)
        beta_h = sizes.by_head(beta)
        columns = beta_h[..., None, :]

        # What is read from the states and the deltas for the outputs.
        do_h = sizes.by_token_head(do)
        matrix = (decay * columns).mul_(sizes.for_heads(queries)).view_as(inverse)
        ddeltas = torch.bmm(do_h.mT, matrix).view_as(deltas)
        dmatrix = torch.bmm(do_h, deltas.flatten(0, 1), out=matrix)
        dread = sizes.scaled_by_token(do_h, decays.from_start)
        dstates = torch.empty_like(states)
        wide_states, wide_dstates = sizes.wide_states(states), sizes.wide_states(dstates)
        torch.bmm(dread.mT, q_g, out=wide_dstates[:-1].flatten(0, 1))
        dq_g = torch.bmm(dread, wide_states[:-1].flatten(0, 1))
        read = sizes.sum_of_values(dread.mul_(outside))

        # From chunk to chunk, backwards; `dstates[i]` becomes the gradient of the state at the start of chunk i.
        dstates[-1] = dlast.mT
        derrors, dscaled, dreads = torch.empty_like(deltas), torch.empty_like(deltas), do_h.view_as(deltas)
        wide_keys, inverses, weights = sizes.chunks(k_g), sizes.chunks(inverse), decays.to_end * beta_h
        for i in reversed(range(sizes.c)):
            written = torch.bmm(wide_dstates[i + 1], wide_keys[i].mT, out=sizes.wide(dscaled[i]))
            ddelta = ddeltas[i].addcmul_(written.view_as(ddeltas[i]), sizes.tokens(weights[i]))
            derror = torch.bmm(ddelta, inverses[i], out=derrors[i])
            torch.mul(derror, sizes.tokens(decays.from_start[i]), out=dreads[i])
            dstates[i].addcmul_(decays.through[i], dstates[i + 1])
            wide_dstates[i].baddbmm_(sizes.wide(dreads[i]), wide_keys[i], alpha=-1)
        whole = torch.linalg.vecdot(states[:-1].flatten(-2), dstates[1:].flatten(-2))
        scaled = torch.mul(deltas, sizes.tokens(weights), out=ddeltas)
        dk_g = torch.bmm(sizes.wide(scaled).flatten(0, 1).mT, wide_dstates[1:].flatten(0, 1))
        dk_g.baddbmm_(sizes.wide(dreads).flatten(0, 1).mT, wide_states[:-1].flatten(0, 1), alpha=-1)
        read -= dreads.mul_(reads).sum(-2).view_as(read)
        dsystem = torch.bmm(derrors.flatten(0, 1).mT, deltas.flatten(0, 1))  # times -1
        added = dscaled.mul_(deltas).sum(-2).view_as(read)

        # Inside the chunks.
        dscored = dmatrix.view_as(decay).mul_(decay)
        exponents = dscored * sizes.for_heads(queries)
        dqueries = dscored.mul_(columns).sum(2).view_as(queries)
        dscored = torch.mul(dsystem.view_as(decay), decay, out=dscored).tril_(-1)
        exponents.addcmul_(dscored, sizes.for_heads(keys), value=-1)
        dkeys = dscored.mul_(columns).sum(2).view_as(keys)
        dq_g.baddbmm_(dqueries, k_g)
        dk_g.baddbmm_(dqueries.mT, q_g)
        dk_g.baddbmm_(dkeys + dkeys.mT, k_g, alpha=-1)

        # A weight has its gradient from its column; a log-decay from all that was carried across its token.
        dbeta = exponents.sum(-2).addcmul_(added, decays.to_end)
        dg = crossing(exponents.mul_(columns)).add_(sum_from(read)).add_(sum_before(added.mul_(weights)))
        dg += whole.view_as(dg[..., 0]).mul_(decays.through.view_as(dg[..., 0]))[..., None]
        if ctx.normalise:  # a change along a unit vector does not count
            dq_g.addcmul_(q_g, (dq_g * q_g).sum(-1, keepdim=True), value=-sizes.d)
            dk_g.addcmul_(k_g, (dk_g * k_g).sum(-1, keepdim=True), value=-1)
        return (
            sizes.by_key_token(dq_g, q_factor),
            sizes.by_key_token(dk_g, k_factor),
            sizes.by_value_token(derrors),
            sizes.by_token(dg),
            sizes.by_token(dbeta),
            dstates[0].mT if ctx.has_initial_state else None,
            None,
            None,
        )


class _Sizes:
    """How a sequence is cut, and the layouts between which its activations move. Every layout is a copy.

    Attributes:
        b, t, h, p, g, r, d, c, l: see the legend of this file; t is the number of tokens without filling.
    """

    def __init__(self, k: Tensor, v: Tensor, chunk: int) -> None:
        self.b, self.t, self.h, self.p = v.shape
        self.g, self.d = k.shape[2:]
        self.r = self.h // self.g
        self.l = chunk
        self.c = -(-self.t // chunk)

    def by_key_head(self, tokens: Tensor, factor: Tensor) -> Tensor:
        """[b, t, g, d], times a factor [b, t, g, 1], as [k g, l, d]."""
        result = tokens.new_empty(self.c, self.b, self.g, self.l, self.d)
        torch.mul(self._filled(tokens), self._filled(factor), out=result.permute(1, 0, 3, 2, 4))
        return result.flatten(0, 2)

    def by_key_token(self, heads: Tensor, factor: Tensor) -> Tensor:
        """[k g, l, d], times a factor [b, t, g, 1], as [b, t, g, d]."""
        tokens = heads.view(self.c, self.b, self.g, self.l, self.d).permute(1, 0, 3, 2, 4)
        return (tokens * self._filled(factor)).flatten(1, 2)[:, : self.t]

    def by_value_head(self, tokens: Tensor) -> Tensor:
        """[b, t, h, p] as [c, b h, p, l]."""
        result = tokens.new_empty(self.c, self.b, self.h, self.p, self.l)
        result.permute(1, 0, 4, 2, 3).copy_(self._filled(tokens))
        return result.flatten(1, 2)

    def by_value_token(self, heads: Tensor) -> Tensor:
        """Undo `by_value_head`."""
        result = heads.new_empty(self.b, self.c, self.l, self.h, self.p)
        result.permute(1, 0, 3, 4, 2).copy_(heads.view(self.c, self.b, self.h, self.p, self.l))
        return result.flatten(1, 2)[:, : self.t]

    def by_token_head(self, tokens: Tensor) -> Tensor:
        """[b, t, h, p] as [k h, l, p]."""
        result = tokens.new_empty(self.c, self.b, self.h, self.l, self.p)
        result.permute(1, 0, 3, 2, 4).copy_(self._filled(tokens))
        return result.flatten(0, 2)

    def by_head(self, tokens: Tensor) -> Tensor:
        """[b, t, h] as [c, b g, r, l]."""
        return self._filled(tokens).permute(1, 0, 3, 2).reshape(self.c, -1, self.r, self.l)

    def by_token(self, heads: Tensor) -> Tensor:
        """Undo `by_head`."""
        return heads.view(self.c, self.b, self.h, self.l).permute(1, 0, 3, 2).flatten(1, 2)[:, : self.t]

    def scaled_by_token(self, heads: Tensor, factor: Tensor) -> Tensor:
        """[k h, l, p], times a factor [c, b g, r, l] of each token, as [k g, l, r p]."""
        result = heads.new_empty(self.c, self.b * self.g, self.l, self.r, self.p)
        scaled = result.transpose(2, 3)
        torch.mul(heads.view(scaled.shape), factor[..., None], out=scaled)
        return result.view(-1, self.l, self.r * self.p)

    def joined(self, heads: Tensor, groups: Tensor, factor: Tensor) -> Tensor:
        """[k h, l, p] plus a factor [c, b g, r, l] of each token times [k g, l, r p], as [b, t, h, p]."""
        result = heads.new_empty(self.b, self.c, self.l, self.g, self.r, self.p)
        first = heads.view(self.c, self.b, self.g, self.r, self.l, self.p).permute(1, 0, 4, 2, 3, 5)
        second = groups.view(self.c, self.b, self.g, self.l, self.r, self.p).permute(1, 0, 3, 2, 4, 5)
        by_token = factor.view(self.c, self.b, self.g, self.r, self.l).permute(1, 0, 4, 2, 3)
        torch.addcmul(first, second, by_token[..., None], out=result)
        return result.view(self.b, self.c * self.l, self.h, self.p)[:, : self.t]

    def sum_of_values(self, groups: Tensor) -> Tensor:
        """Sum over p of [k g, l, r p], as [c, b g, r, l]."""
        return groups.view(self.c, -1, self.l, self.r, self.p).sum(-1).mT

    def chunks(self, tensors: Tensor) -> Tensor:
        """[c ..., l, size] as [c, ..., l, size]."""
        return tensors.unflatten(0, (self.c, -1))

    def wide(self, values: Tensor) -> Tensor:
        """[..., b h, p, l] as [..., b g, r p, l]."""
        return values.view(*values.shape[:-3], -1, self.r * self.p, self.l)

    def wide_states(self, states: Tensor) -> Tensor:
        """[..., b, h, p, d] as [..., b g, r p, d]."""
        return states.view(-1, self.b * self.g, self.r * self.p, self.d)

    def tokens(self, numbers: Tensor) -> Tensor:
        """[..., b g, r, l] as [..., b h, 1, l], which broadcasts over values."""
        return numbers.flatten(-3, -2).unsqueeze(-2)

    def for_heads(self, scores: Tensor) -> Tensor:
        """[k g, l, l] as [c, b g, 1, l, l], which broadcasts over the value heads of a key head."""
        return scores.view(self.c, -1, 1, self.l, self.l)

    def _filled(self, tokens: Tensor) -> Tensor:
        """[b, t, ...] as [b, c, l, ...], with zeros at the end."""
        missing = self.c * self.l - self.t
        if missing:
            tokens = torch.cat([tokens, tokens.new_zeros(self.b, missing, *tokens.shape[2:])], dim=1)
        return tokens.unflatten(1, (self.c, self.l))


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
        self.from_start = self._cum.to(g.dtype).exp()
        self.to_end = (end - self._cum).to(g.dtype).exp_()
        self.through = end.to(g.dtype).exp().view(sizes.c, sizes.b, sizes.h, 1, 1)

    def pairwise(self) -> Tensor:
        """decay_ij, [c, b g, r, l, l]."""
        return pairwise(self._cum, self._cum, self._dtype)


def _factors(x: Tensor, normalise: bool) -> Tensor:
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
