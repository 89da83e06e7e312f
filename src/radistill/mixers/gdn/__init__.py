"""Gated DeltaNet (arXiv 2412.06464), as transformers' Qwen3.5 builds it."""

from radistill.mixers.gdn.delta.install import use_fast_delta, without_fast_delta
from radistill.mixers.gdn.geometry import GDNGeometry
from radistill.mixers.gdn.starts import FITTED, RANDOM, TRANSFER, ZERO
from radistill.mixers.interface import Mixer

GDN = Mixer(
    kind="gdn",
    title="Gated DeltaNet",
    phrase="linear attention (Gated DeltaNet)",
    initialisations={"zero": ZERO, "transfer": TRANSFER, "random": RANDOM, "fitted": FITTED},
    silent="random",
    geometry=GDNGeometry.of,
    output=lambda block: block.out_proj,
    use_fast_path=use_fast_delta,
    without_fast_path=without_fast_delta,
)
