"""What the students of the benchmarks have in common: geometry, rates to choose from, and tokens to a quality."""

from typing import Any

from radistill.conversion.targets import GraniteHybridSettings

GEOMETRY = GraniteHybridSettings(groups="heads")
"""Of all arms alike; a transfer needs a B/C group for each head."""

RATES = {"zero": (1e-4, 3e-4, 1e-3), "transfer": (1e-4, 3e-4, 1e-3), "fitted": (1e-5, 3e-5, 1e-4)}
"""Three for each start; one that is near the teacher already needs smaller ones, or training leads away from it."""


def tokens_until(arm: dict[str, Any], kl: float) -> float | None:
    """Tokens at an arm's first measure that is no higher than `kl`; None if it never gets there."""
    return next((point["tokens"] for point in arm["evaluations"] if point["kl"] <= kl), None)


def token_ratio(arm: dict[str, Any], baseline: dict[str, Any]) -> float | None:
    """Tokens until an arm is no worse than the baseline at its end, over the baseline's; None if never."""
    reached = tokens_until(arm, baseline["evaluations"][-1]["kl"])
    return None if reached is None else reached / baseline["tokens"]
