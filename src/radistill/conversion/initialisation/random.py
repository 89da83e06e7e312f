"""`random`: nothing is copied from the attention."""

from radistill.conversion.geometry import Mamba2Geometry
from radistill.conversion.initialisation import mamba2
from radistill.conversion.initialisation.interface import Attention, Context, Initialisation, Mixer
from radistill.models.anatomy import Anatomy


def fill(mixer: Mixer, attention: Attention, context: Context) -> None:
    """Everything by Mamba-2's published initialisation, but `out_proj` zero: the student starts as the skip draft."""
    mamba2.recurrence(mixer, context.generator)
    mamba2.convolution(mixer.conv1d, context.generator)
    mamba2.zero_projection_biases(mixer)
    mamba2.linear_weight(mixer.in_proj.weight, context.generator)
    mixer.out_proj.weight.zero_()


def obstacles(geometry: Mamba2Geometry, anatomy: Anatomy, qkv_bias: bool) -> list[str]:
    """None: any geometry will do."""
    return []


INITIALISATION = Initialisation(
    fill=fill,
    obstacles=obstacles,
    silent=True,
    rate=1e-3,
    summary="Mamba-2's own initialisation with out_proj zero; starts as the skip draft",
)
