"""Uncertainty of a share."""

import math

_Z95 = 1.959963984540054  # the normal quantile that leaves 2.5 % on each side


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike the normal one it stays within 0 to 1 and holds for small numbers.

    Raises:
        ValueError: without trials, or with more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    share = successes / trials
    denominator = 1 + _Z95**2 / trials
    centre = (share + _Z95**2 / (2 * trials)) / denominator
    half = _Z95 * math.sqrt(share * (1 - share) / trials + _Z95**2 / (4 * trials**2)) / denominator
    # At the ends the two sides differ by rounding alone, and a bound must not lie beyond the share.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
