"""`random`: nothing is copied from the attention."""

from radistill.mixers.interface import Attention, AttentionShape, Context, Initialisation
from radistill.mixers.mamba2.geometry import Mamba2Block, Mamba2Geometry
from radistill.mixers.mamba2.start import recurrence, zero_projection_biases
from radistill.mixers.start import convolution, linear_weight


def fill(block: Mamba2Block, attention: Attention, context: Context) -> None:
    """Everything by Mamba-2's published initialisation, but `out_proj` zero: the student starts as the skip draft."""
    recurrence(block, context.generator)
    convolution(block.conv1d, context.generator)
    zero_projection_biases(block)
    linear_weight(block.in_proj.weight, context.generator)
    block.out_proj.weight.zero_()


def obstacles(geometry: Mamba2Geometry, shape: AttentionShape) -> list[str]:
    """None: any geometry will do."""
    return []


INITIALISATION = Initialisation(
    fill=fill,
    obstacles=obstacles,
    silent=True,
    summary="Mamba-2's own initialisation with out_proj zero; starts as the skip draft",
    rate=1e-3,
)
