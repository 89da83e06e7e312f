"""Gated DeltaNet (arXiv 2412.06464), as transformers' Qwen3.5 builds it."""

from radistill.mixers.gdn.delta.install import SWAP
from radistill.mixers.gdn.geometry import GDNGeometry
from radistill.mixers.gdn.starts import STARTS
from radistill.mixers.interface import Mixer

GDN = Mixer(
    kind="gdn",
    title="Gated DeltaNet",
    phrase="linear attention (Gated DeltaNet)",
    initialisations=STARTS,
    silent="random",
    geometry=GDNGeometry.of,
    output=lambda block: block.out_proj,
    swap=SWAP,
)
