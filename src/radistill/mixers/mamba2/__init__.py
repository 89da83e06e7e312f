"""Mamba-2 (arXiv 2405.21060), as transformers' GraniteMoeHybrid and its relatives build it."""

from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2 import fitted, random, transfer, zero
from radistill.mixers.mamba2.geometry import Mamba2Geometry
from radistill.mixers.mamba2.ssd.install import use_fast_ssd, without_fast_ssd

MAMBA2 = Mixer(
    kind="mamba2",
    title="Mamba-2",
    phrase="an SSM (Mamba-2)",
    initialisations={
        "zero": zero.INITIALISATION,
        "transfer": transfer.INITIALISATION,
        "random": random.INITIALISATION,
        "fitted": fitted.INITIALISATION,
    },
    silent="random",
    geometry=Mamba2Geometry.of,
    output=lambda block: block.out_proj,
    use_fast_path=use_fast_ssd,
    without_fast_path=without_fast_ssd,
)
