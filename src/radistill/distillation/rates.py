"""The learning rate that ends a short training nearest to the teacher."""

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from radistill.console import note
from radistill.errors import TrainingDivergedError

_GRID = [float(f"{digit}e{exponent}") for exponent in range(-9, 2) for digit in (1, 3)]
"""Half a decade apart: what is tried beyond the given rates."""


def _rising(rates: list[float]) -> list[float]:
    if any(first >= second for first, second in itertools.pairwise(rates)):
        raise ValueError("rates have to rise, each above the one before")
    return rates


Rates = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1), AfterValidator(_rising)
]


class RateSearch(BaseModel, extra="forbid"):
    """Which learning rates of the new blocks are tried before a training, and how."""

    rates: Rates = Field(description="rates of the new blocks to begin with, rising")
    share: float = Field(
        default=0.1, gt=0, le=1, description="share of the steps, ten at least, after which rates are compared by KL"
    )
    further: int = Field(
        default=4,
        ge=0,
        description="while the best rate is the lowest or highest so far, the next one, half a decade beyond, is tried "
        "too; at most so many",
    )


def best_rate(
    rates: Sequence[float], attempt: Callable[[float], float], further: int = 0
) -> tuple[float, dict[float, float | None]]:
    """The rate at which `attempt`, a short training, ends at the lowest KL, and what each rate gave.

    The given rates are tried; then, as long as the best is the lowest or highest so far, the next half-decade beyond
    it, at most `further` of them: a best that has no worse one on either side may not be the best. A rate at which
    training breaks down is None, and out of the choice.

    Args:
        rates: at least one, rising.
        attempt: from a rate to a KL; a `TrainingDivergedError` says that training broke down.
        further: most rates that are tried besides.

    Raises:
        TrainingDivergedError: the last one, if none of the rates can be trained with.
    """
    found: dict[float, float | None] = {}
    failed: TrainingDivergedError | None = None

    def take(rate: float) -> None:
        nonlocal failed
        try:
            found[rate] = attempt(rate)
        except TrainingDivergedError as error:
            found[rate], failed = None, error
            note(f"learning rate {rate:g}: {error}")

    for rate in rates:
        take(rate)
    while True:
        kls = {rate: kl for rate, kl in found.items() if kl is not None}
        if not kls:
            assert failed is not None
            raise failed
        best = min(kls, key=kls.__getitem__)
        below = [rate for rate in _GRID if rate < best == min(found)][-1:]
        above = [rate for rate in _GRID if rate > best == max(found)][:1]
        if not below + above or len(found) == len(rates) + further:
            return best, dict(sorted(found.items()))
        take((below + above)[0])
