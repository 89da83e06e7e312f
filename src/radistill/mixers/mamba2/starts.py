"""How a Mamba-2 block starts."""

import torch

from radistill.mixers.interface import Attention, AttentionShape, Context, Initialisation, any_geometry
from radistill.mixers.mamba2.geometry import Mamba2Block, Mamba2Geometry
from radistill.mixers.start import convolution, decays, linear_weight, pass_through, per_query_head


def recurrence(block: Mamba2Block, generator: torch.Generator) -> None:
    """Decays and step sizes as published; D and the norm's weight are 1; projections' biases, if any, are 0."""
    decays(block.A_log, block.dt_bias, generator)
    block.D.fill_(1.0)
    block.norm.weight.fill_(1.0)
    for projection in (block.in_proj, block.out_proj):
        if projection.bias is not None:  # where a source hybrid's blocks have them
            projection.bias.zero_()


def fill_random(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """Everything by Mamba-2's published initialisation, but `out_proj` zero: the student starts as the skip draft."""
    recurrence(block, context.generator)
    convolution(block.conv1d, context.generator)
    linear_weight(block.in_proj.weight, context.generator)
    block.out_proj.weight.zero_()


def fill_zero(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """RAD's start (arXiv 2505.22135): `in_proj` zero, `out_proj` from `o_proj`, the rest as published.

    With `in_proj` zero the gate silu(z) is zero and so is the output. The same gate lets gradients through only to the
    rows of z, and there only because the convolution's bias keeps x, B and C away from zero.
    """
    recurrence(block, context.generator)
    convolution(block.conv1d, context.generator)
    block.in_proj.weight.zero_()
    # Only the weight: a bias of o_proj would speak while the rest is silent.
    block.out_proj.weight.copy_(attention.o_proj.weight)


def fill_transfer(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """V -> x, K -> B, Q -> C, O -> `out_proj`; KV heads repeated so that each SSM head has its own group
    (Mamba-in-the-Llama's start, arXiv 2408.15237).

    Linear attention and Mamba-2's recurrence share one form, y_t = sum over s <= t of (C_t . B_s) x_s, decayed: C plays
    the query, B the key, x the value. The copy does not carry over softmax, rotary positions, the SiLU after the
    convolution and the gated norm. Measured on SmolLM2 (ten layers), it alone destroys the model, and `align` or
    training must follow. The rest, deterministic by the seed:

    - z and dt have no counterpart in attention and keep Mamba-2's random rows, as in the published code. A neutral gate
      does not exist without a bias on `in_proj`: it would need z to be one positive constant, which the norm removes.
    - the convolution passes its input through (last tap 1, others 0);
    - biases of q, k and v (Qwen2) become the convolution's bias, which is exact while the convolution passes through.
    """
    shape = context.shape
    recurrence(block, context.generator)
    block.out_proj.weight.copy_(attention.o_proj.weight)
    if block.out_proj.bias is not None and attention.o_proj.bias is not None:
        block.out_proj.bias.copy_(attention.o_proj.bias)

    inner = shape.heads * shape.head_dim
    z, x, b, c, dt = block.in_proj.weight.split([inner, inner, inner, inner, shape.heads], dim=0)
    linear_weight(z, context.generator)
    linear_weight(dt, context.generator)
    x.copy_(per_query_head(attention.v_proj.weight, shape.heads, shape.kv_heads))
    b.copy_(per_query_head(attention.k_proj.weight, shape.heads, shape.kv_heads))
    c.copy_(attention.q_proj.weight)

    pass_through(block.conv1d)
    if block.conv1d.bias is not None and attention.q_proj.bias is not None:
        x, b, c = block.conv1d.bias.split([inner, inner, inner])
        x.copy_(per_query_head(attention.v_proj.bias, shape.heads, shape.kv_heads))
        b.copy_(per_query_head(attention.k_proj.bias, shape.heads, shape.kv_heads))
        c.copy_(attention.q_proj.bias)


def _same_output(geometry: Mamba2Geometry, shape: AttentionShape) -> list[str]:
    """`out_proj` must have the shape of `o_proj`, and gradients need the convolution's bias."""
    found = []
    if geometry.inner != shape.heads * shape.head_dim:
        found.append(
            f"expand is {geometry.expand}, so out_proj takes {geometry.inner} channels and o_proj gives "
            f"{shape.heads * shape.head_dim}; set expand: 1 or init: random"
        )
    if not geometry.conv_bias:
        found.append("the blocks have no convolution bias, so no gradient would ever reach them; set init: random")
    return found


def _head_to_head(geometry: Mamba2Geometry, shape: AttentionShape) -> list[str]:
    """One SSM head and one group per attention head, all of the attention's head size."""
    found = []
    if geometry.expand != 1 or geometry.heads != shape.heads:
        found.append(
            f"it copies head to head, but expand: {geometry.expand} makes {geometry.heads} SSM heads of "
            f"{geometry.head_dim} channels for {shape.heads} attention heads of {shape.head_dim}; set expand: 1"
        )
    if geometry.groups != shape.heads:
        found.append(
            f"each head needs a B/C group of its own, but groups is {geometry.groups}; set groups: heads "
            f"({shape.heads}) or another init"
        )
    if geometry.state != shape.head_dim:
        found.append(f"state is {geometry.state}, but keys have {shape.head_dim} channels; leave state out")
    if shape.bias and not geometry.conv_bias:
        found.append("the biases of q, k and v have no place, because the blocks' convolution has no bias")
    return found


STARTS = {
    "zero": Initialisation(
        fill=fill_zero,
        obstacles=_same_output,
        silent=True,
        summary="RAD: in_proj zero, out_proj from o_proj; starts as the skip draft",
    ),
    "transfer": Initialisation(
        fill=fill_transfer,
        obstacles=_head_to_head,
        silent=False,
        summary="Mamba-in-the-Llama: Q, K, V, O become C, B, x, out_proj (needs groups: heads)",
        rate=1e-2,
    ),
    "random": Initialisation(
        fill=fill_random,
        obstacles=any_geometry,
        silent=True,
        summary="Mamba-2's own initialisation with out_proj zero; starts as the skip draft",
        rate=1e-3,
    ),
    "fitted": Initialisation(
        fill=fill_random,
        obstacles=any_geometry,
        silent=True,
        needs_fit=True,
        summary="random, then fitted to the attention by `align`: output projection in closed form, the rest by "
        "regression",
    ),
}
