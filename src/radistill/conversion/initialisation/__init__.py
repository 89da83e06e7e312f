"""Initialisations of new blocks: one file each, registered here under its published name."""

from radistill.conversion.initialisation import fitted, random, transfer, zero
from radistill.conversion.initialisation.interface import Initialisation
from radistill.errors import RadistillError

INITIALISATIONS: dict[str, Initialisation] = {
    "zero": zero.INITIALISATION,
    "transfer": transfer.INITIALISATION,
    "random": random.INITIALISATION,
    "fitted": fitted.INITIALISATION,
}


def find_initialisation(name: str) -> Initialisation:
    """The initialisation called `name`.

    Raises:
        RadistillError: listing the known names.
    """
    if name not in INITIALISATIONS:
        raise RadistillError(f"init: {name!r} is unknown; choose from {', '.join(INITIALISATIONS)}")
    return INITIALISATIONS[name]


__all__ = ["INITIALISATIONS", "Initialisation", "find_initialisation"]
