"""Mixers: the kinds of block that can stand in place of attention. One folder each, registered here under its kind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from radistill.mixers.gdn import GDN
from radistill.mixers.interface import Mixer
from radistill.mixers.mamba2 import MAMBA2

MIXERS: dict[str, Mixer] = {}


def register_mixer(mixer: Mixer) -> None:
    """Make a mixer known under its kind."""
    MIXERS[mixer.kind] = mixer


def initialisation_names() -> list[str]:
    """How new blocks can start, over all mixers."""
    return list(dict.fromkeys(name for mixer in MIXERS.values() for name in mixer.initialisations))


def use_fast_paths(network: nn.Module) -> None:
    """Let every block of a network that we have faster code for run it."""
    for mixer in MIXERS.values():
        if mixer.swap is not None:
            mixer.swap.use(network)


@contextmanager
def without_fast_paths(network: nn.Module) -> Iterator[None]:
    """Undo `use_fast_paths` inside the block, to measure or test against the path of the classes themselves."""
    with ExitStack() as stack:
        for mixer in MIXERS.values():
            if mixer.swap is not None:
                stack.enter_context(mixer.swap.without(network))
        yield


register_mixer(MAMBA2)
register_mixer(GDN)
