"""How a Gated DeltaNet block starts.

The block computes, for each value head with query q, key k (both of length 1), value v, decay a, writing strength b:

    S_t = a_t S_{t-1} (1 - b_t k_t k_t^T) + b_t v_t k_t^T,    o_t = S_t q_t / sqrt(key_dim)    (arXiv 2412.06464, (10))

and puts out `out_proj(norm(o) * silu(z))`. q, k and v pass a causal convolution and SiLU first.
"""

import torch
from torch import Tensor

from radistill.mixers.gdn.geometry import GDNBlock, GDNGeometry
from radistill.mixers.interface import Attention, AttentionShape, Context, Initialisation, any_geometry
from radistill.mixers.start import convolution, decays, linear_weight, pass_through, per_query_head

_CONVOLUTION_NOISE = 0.3


def _recurrence(block: GDNBlock, context: Context) -> None:
    """Decays and step sizes by Mamba-2's rule: with the stock start, most heads forget everything at once."""
    decays(block.A_log, block.dt_bias, context.generator)
    block.norm.weight.fill_(1.0)


def _draw(block: GDNBlock, context: Context) -> None:
    _recurrence(block, context)
    convolution(block.conv1d, context.generator)
    for projection in (block.in_proj_qkv, block.in_proj_z, block.in_proj_b, block.in_proj_a):
        linear_weight(projection.weight, context.generator)


def fill_random(block: GDNBlock, attention: Attention, context: Context) -> None:
    """Everything drawn, but `out_proj` zero: the student starts as the skip draft."""
    _draw(block, context)
    block.out_proj.weight.zero_()


def fill_zero(block: GDNBlock, attention: Attention, context: Context) -> None:
    """`in_proj_z` zero, `out_proj` from `o_proj`, the rest drawn.

    With `in_proj_z` zero the gate silu(z) is zero and so is the output, while gradients still reach `in_proj_z`. With
    `in_proj_qkv` zero as well nothing would: the convolution has no bias that kept the state away from zero.
    """
    _draw(block, context)
    block.in_proj_z.weight.zero_()
    block.out_proj.weight.copy_(attention.o_proj.weight)


def fill_transfer(block: GDNBlock, attention: Attention, context: Context) -> None:
    """Q, K and V become `in_proj_qkv`, O becomes `out_proj` (Mamba-in-the-Llama's start, arXiv 2408.15237).

    KV heads are repeated so that each value head has a query and a key of its own. A QK-norm goes along: the block
    gives queries and keys length 1, so that the norm's weight, multiplied into the rows of its projection, leaves the
    same direction. Softmax, rotary positions, biases and what SiLU does after the convolution have no counterpart.
    Gates, decays and writing strengths, which attention does not have, are drawn.
    """
    _recurrence(block, context)
    pass_through(block.conv1d)
    for projection in (block.in_proj_z, block.in_proj_b, block.in_proj_a):
        linear_weight(projection.weight, context.generator)
    heads, kv_heads, size = context.shape.heads, context.shape.kv_heads, context.shape.head_dim
    q, k, v = block.in_proj_qkv.weight.chunk(3)
    keys = attention.k_proj.weight.unflatten(0, (kv_heads, size))
    q.copy_(_scaled(_queries(attention, context.shape), attention, "q_norm").flatten(0, 1))
    k.copy_(per_query_head(_scaled(keys, attention, "k_norm").flatten(0, 1), heads, kv_heads))
    v.copy_(per_query_head(attention.v_proj.weight, heads, kv_heads))
    block.out_proj.weight.copy_(attention.o_proj.weight)


def fill_fitted(block: GDNBlock, attention: Attention, context: Context) -> None:
    """As `random`, but q, k and v start from attention's, where heads are as many and as large, and the convolution
    nearly hands on its input.

    After as many steps of `align`, such a block leaves a fifth less of the attention's output unexplained than one
    that is drawn. Query heads that share a key share one query here: their mean.
    """
    fill_random(block, attention, context)
    noise = block.conv1d.weight * _CONVOLUTION_NOISE
    pass_through(block.conv1d)
    block.conv1d.weight.add_(noise)
    shape = context.shape
    size = shape.head_dim
    keys, values = shape.kv_heads * size, shape.heads * size
    if (block.in_proj_qkv.out_features, block.out_proj.in_features) != (2 * keys + values, values):
        return
    q, k, v = block.in_proj_qkv.weight.split([keys, keys, values])
    queries = _scaled(_queries(attention, shape), attention, "q_norm").unflatten(0, (shape.kv_heads, -1))
    q.copy_(queries.mean(dim=1).flatten(0, 1))
    k.copy_(_scaled(attention.k_proj.weight.unflatten(0, (-1, size)), attention, "k_norm").flatten(0, 1))
    v.copy_(per_query_head(attention.v_proj.weight, shape.heads, shape.kv_heads))


def _queries(attention: Attention, shape: AttentionShape) -> Tensor:
    """Rows of the queries, [heads, head_dim, hidden]. Where attention has an output gate, its rows follow the query's,
    head by head."""
    return attention.q_proj.weight.unflatten(0, (shape.heads, -1, shape.head_dim))[:, 0]


def _scaled(rows: Tensor, attention: Attention, name: str) -> Tensor:
    """Rows of a projection, [heads, head_dim, hidden], times the weight of the norm that follows it, if any."""
    norm = getattr(attention, name, None)
    if norm is None:
        return rows
    # Architectures store the weight, or the weight minus one: what the norm makes of ones tells them apart.
    return rows * norm(torch.ones(rows.shape[1], dtype=rows.dtype, device=rows.device))[:, None]


def _same_output(geometry: GDNGeometry, shape: AttentionShape) -> list[str]:
    """`out_proj` must have the shape of `o_proj`."""
    if geometry.inner == shape.heads * shape.head_dim:
        return []
    return [
        f"out_proj takes {geometry.value_heads} value heads of {geometry.value_dim} channels and o_proj gives "
        f"{shape.heads} of {shape.head_dim}; leave value_heads and value_dim out, or set init: random"
    ]


def _head_to_head(geometry: GDNGeometry, shape: AttentionShape) -> list[str]:
    """One query, key and value head per attention head, all of the attention's head size."""
    found = []
    if (geometry.key_heads, geometry.value_heads) != (shape.heads, shape.heads):
        found.append(
            f"it copies head to head, but there are {geometry.key_heads} key heads and {geometry.value_heads} value "
            f"heads for {shape.heads} attention heads; set key_heads: heads ({shape.heads}) or another init"
        )
    if (geometry.key_dim, geometry.value_dim) != (shape.head_dim, shape.head_dim):
        found.append(
            f"keys have {geometry.key_dim} and values {geometry.value_dim} channels, but attention's have "
            f"{shape.head_dim}; leave key_dim and value_dim out"
        )
    if shape.bias:
        found.append("the biases of q, k and v have no place, because the blocks' convolution has no bias")
    return found


STARTS = {
    "zero": Initialisation(
        fill=fill_zero,
        obstacles=_same_output,
        silent=True,
        summary="RAD: in_proj_z zero, out_proj from o_proj; starts as the skip draft",
    ),
    "transfer": Initialisation(
        fill=fill_transfer,
        obstacles=_head_to_head,
        silent=False,
        summary="Mamba-in-the-Llama: Q, K, V, O become in_proj_qkv, out_proj (needs key_heads: heads)",
        rate=1e-2,
    ),
    "random": Initialisation(
        fill=fill_random,
        obstacles=any_geometry,
        silent=True,
        summary="drawn, with out_proj zero; starts as the skip draft",
        rate=1e-3,
    ),
    "fitted": Initialisation(
        fill=fill_fitted,
        obstacles=any_geometry,
        silent=True,
        needs_fit=True,
        summary="from Q, K and V, then fitted to the attention by `align`: output projection in closed form, the rest "
        "by regression",
    ),
}
