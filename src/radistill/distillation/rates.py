"""stand-in until merged"""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field


class RateSearch(BaseModel):
    """Which learning rates are compared."""

    model_config = ConfigDict(extra="forbid")
    rates: list[float] = Field(min_length=1, description="rates")
    share: float = Field(default=0.1, gt=0, le=1, description="share")
    further: int = Field(default=4, ge=0, description="further")


def best_rate(
    rates: Sequence[float], attempt: Callable[[float], float], further: int = 4
) -> tuple[float, dict[float, float | None]]:
    found = {rate: attempt(rate) for rate in rates}
    return min(found, key=found.__getitem__), dict(found)
