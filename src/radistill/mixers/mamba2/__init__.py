"""Mamba-2 (arXiv 2405.21060), as transformers' GraniteMoeHybrid and its relatives build it."""

from contextlib import AbstractContextManager
from typing import ClassVar

from torch import nn
from transformers import PreTrainedConfig

from radistill.mixers.interface import Initialisation, Mixer
from radistill.mixers.mamba2 import fitted, random, transfer, zero
from radistill.mixers.mamba2.geometry import Mamba2Geometry
from radistill.mixers.mamba2.ssd.install import use_fast_ssd, without_fast_ssd


class Mamba2(Mixer):
    """See `Mixer` for what each member promises."""

    kind = "mamba2"
    title = "Mamba-2"
    phrase = "an SSM (Mamba-2)"
    initialisations: ClassVar[dict[str, Initialisation]] = {
        "zero": zero.INITIALISATION,
        "transfer": transfer.INITIALISATION,
        "random": random.INITIALISATION,
        "fitted": fitted.INITIALISATION,
    }
    silent = "random"

    def geometry(self, config: PreTrainedConfig) -> Mamba2Geometry:
        """As the config's fields `mamba_*` say."""
        return Mamba2Geometry.of(config)

    def output(self, block: nn.Module) -> nn.Linear:
        """The output projection."""
        projection = block.get_submodule("out_proj")
        assert isinstance(projection, nn.Linear)
        return projection

    def use_fast_path(self, network: nn.Module) -> None:
        """Our convolution, scan and gated norm, on a CPU."""
        use_fast_ssd(network)

    def without_fast_path(self, network: nn.Module) -> AbstractContextManager[None]:
        """transformers' own torch code."""
        return without_fast_ssd(network)


MAMBA2 = Mamba2()
