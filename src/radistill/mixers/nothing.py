"""Nothing: what stands in the place of layers that go altogether."""

from dataclasses import dataclass

from radistill.mixers.interface import Initialisation, Mixer, any_geometry


@dataclass(frozen=True)
class NoGeometry:
    """The shape of no block."""

    state_numbers = 0


_START = Initialisation(
    fill=lambda block, attention, context: None,
    obstacles=any_geometry,
    silent=True,
    summary="there is no block, so how it starts does not matter",
)

NOTHING = Mixer(
    kind="nothing",
    title="nothing",
    phrase="nothing",
    initialisations=dict.fromkeys(("zero", "transfer", "random", "fitted"), _START),
    silent="zero",
    geometry=lambda config: NoGeometry(),
)
