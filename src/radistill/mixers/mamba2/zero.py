"""`zero`: RAD's start (arXiv 2505.22135). The block says nothing; the student is the draft that the search judged."""

from radistill.mixers.interface import Attention, AttentionShape, Context, Initialisation
from radistill.mixers.mamba2.geometry import Mamba2Block, Mamba2Geometry
from radistill.mixers.mamba2.start import recurrence, zero_projection_biases
from radistill.mixers.start import convolution


def fill(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """`in_proj` zero, `out_proj` from `o_proj`, the rest by Mamba-2's published initialisation.

    With `in_proj` zero the gate silu(z) is zero and so is the output. The same gate lets gradients through only to the
    rows of z, and there only because the convolution's bias keeps x, B and C away from zero.
    """
    recurrence(block, context.generator)
    convolution(block.conv1d, context.generator)
    zero_projection_biases(block)
    block.in_proj.weight.zero_()
    # Only the weight: a bias of o_proj would speak while the rest is silent.
    block.out_proj.weight.copy_(attention.o_proj.weight)


def obstacles(geometry: Mamba2Geometry, shape: AttentionShape) -> list[str]:
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


INITIALISATION = Initialisation(
    fill=fill,
    obstacles=obstacles,
    silent=True,
    summary="RAD: in_proj zero, out_proj from o_proj; starts as the skip draft",
)
