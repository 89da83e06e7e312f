"""Mamba-2 (arXiv 2405.21060), as transformers' GraniteMoeHybrid and its relatives build it."""

from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2.geometry import Mamba2Geometry
from radistill.mixers.mamba2.ssd.install import SWAP
from radistill.mixers.mamba2.starts import STARTS

MAMBA2 = Mixer(
    kind="mamba2",
    title="Mamba-2",
    phrase="an SSM (Mamba-2)",
    initialisations=STARTS,
    silent="random",
    geometry=Mamba2Geometry.of,
    output=lambda block: block.out_proj,
    swap=SWAP,
)
