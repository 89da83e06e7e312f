"""`fitted`: the start of a block that `align` then fits to the attention it replaces. It has nothing to say before."""

from radistill.mixers.interface import Initialisation
from radistill.mixers.mamba2 import random

INITIALISATION = Initialisation(
    fill=random.fill,
    obstacles=random.obstacles,
    silent=True,
    needs_fit=True,
    summary="random, then fitted to the attention by `align`: output projection in closed form, the rest by regression",
)
