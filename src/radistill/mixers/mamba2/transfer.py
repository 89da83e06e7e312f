"""`transfer`: Mamba-in-the-Llama's start (arXiv 2408.15237). Attention's projections become the block's.

Linear attention and Mamba-2's recurrence share one form, y_t = sum over s <= t of (C_t . B_s) x_s, decayed: C plays the
query, B the key, x the value. What the copy cannot carry over is softmax, rotary positions, the SiLU after the
convolution and the gated norm; measured on SmolLM2 (ten layers), the copy alone destroys the model, and `align` or
training must follow.
"""

from radistill.mixers.interface import Attention, AttentionShape, Context, Initialisation
from radistill.mixers.mamba2.geometry import Mamba2Block, Mamba2Geometry
from radistill.mixers.mamba2.start import copy_output, recurrence, zero_projection_biases
from radistill.mixers.start import linear_weight, pass_through, per_query_head


def fill(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """V -> x, K -> B, Q -> C, O -> `out_proj`; KV heads repeated so that each SSM head has its own group.

    The rest, deterministic by the seed:
    - z and dt have no counterpart in attention and keep Mamba-2's random rows, as in the published code. A neutral gate
      does not exist without a bias on `in_proj`: it would need z to be one positive constant, which the norm removes.
    - the convolution passes its input through (last tap 1, others 0);
    - biases of q, k and v (Qwen2) become the convolution's bias, which is exact while the convolution passes through.
    """
    shape = context.shape
    recurrence(block, context.generator)
    zero_projection_biases(block)
    copy_output(block, attention)

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


def obstacles(geometry: Mamba2Geometry, shape: AttentionShape) -> list[str]:
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


INITIALISATION = Initialisation(
    fill=fill,
    obstacles=obstacles,
    silent=False,
    summary="Mamba-in-the-Llama: Q, K, V, O become C, B, x, out_proj (needs groups: heads)",
    rate=1e-2,
)
