"""How far a share can be trusted, and which differences of two models on the same examples are real.

Comparing each example with itself takes out how hard the examples are, so far fewer of them are needed than for two
separate intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_Z = NormalDist().inv_cdf(0.975)


def wilson(successes: int, trials: int, z: float = _Z) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike the normal one it stays within 0 to 1 and holds for small numbers.

    Args:
        successes, trials: their ratio is the share.
        z: standard errors from the share to each end; that of 95 % unless it is given.

    Raises:
        ValueError: without trials, or with more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    centre = successes + z**2 / 2
    half = z * math.sqrt(successes * (trials - successes) / trials + z**2 / 4)
    low = (centre - half) / (trials + z**2) if successes else 0.0
    high = (centre + half) / (trials + z**2) if successes < trials else 1.0
    return low, high


def ratio_interval(both: int, only_first: int, only_second: int) -> tuple[float, float]:
    """95 % interval of the second model's share of right answers over the first's (Bonett and Price 2006).

    Both have answered the same examples. Each share has Wilson's interval, narrowed by what the two have in common, and
    the ends are divided by one another; so the interval also holds where no answer differs. Examples that neither has
    right say nothing of the ratio.

    Args:
        both: examples that both have right.
        only_first, only_second: examples that one of them alone has right.

    Raises:
        ValueError: if the first has none right, so that there is no ratio.
    """
    first, second, n = both + only_first, both + only_second, both + only_first + only_second
    if min(both, only_first, only_second) < 0 or first == 0:
        raise ValueError(f"{second} over {first} is not a ratio of shares")
    together = math.sqrt((only_first + only_second + 2) / ((first + 1) * (second + 1)))
    apart = sum(math.sqrt((1 - (right + 1) / (n + 2)) / (right + 1)) for right in (first, second))
    z = _Z * together / apart
    (low, high), (own_low, own_high) = wilson(first, n, z), wilson(second, n, z)
    return own_low / high, own_high / low


@dataclass(frozen=True)
class Difference:
    """The second model's figure less the first's.

    Attributes:
        difference: of shares, or of weighted means.
        p: probability of a difference at least as large if the models were equally good, two-sided.
        interval: 95 % bootstrap interval of the difference.
        n: examples.
        only_first, only_second: examples that this model alone has right; None for continuous figures.
    """

    difference: float
    p: float
    interval: tuple[float, float]
    n: int
    only_first: int | None = None
    only_second: int | None = None


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """McNemar's exact test on right and wrong answers, one of each model an example.

    Only examples on which the models differ say anything: if both were equally good, each would fall to either side
    with probability 1/2. The interval is bootstrapped over all examples.

    Raises:
        ValueError: without examples, or with different numbers of them.
    """
    _check(first, second)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    apart = only_first + only_second
    tail, ways = 0, 1  # whole numbers, so p is exact
    for heads in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (apart - heads) // (heads + 1)
    p = min(1.0, 2 * tail / 2**apart)
    drawn = _resample(np.asarray(second, float) - np.asarray(first, float), np.ones(len(first)))
    return Difference((only_second - only_first) / len(first), p, _interval(drawn), len(first), only_first, only_second)


def paired_bootstrap(first: Sequence[float], second: Sequence[float], weights: Sequence[float]) -> Difference:
    """Bootstrap, over examples, the difference of two weighted means, such as nats a byte.

    Args:
        first: the first model's sum over each example, such as its nats.
        second: the second model's.
        weights: what the sums are divided by, such as the example's bytes.

    The test is that of the centred bootstrap: how often a resampled difference is as far from the observed one as that
    is from zero.

    Raises:
        ValueError: without examples, with different numbers of them, or with a weight that is not above 0.
    """
    _check(first, second)
    _check(first, weights)
    if min(weights) <= 0:
        raise ValueError(f"a weight is {min(weights)}, but must be above 0")
    gaps, shares = np.asarray(second, float) - np.asarray(first, float), np.asarray(weights, float)
    observed = float(gaps.sum() / shares.sum())
    drawn = _resample(gaps, shares)
    # The observed sample counts as one of the draws, so that no p is 0.
    beyond = np.count_nonzero(np.abs(drawn - observed) >= abs(observed))
    return Difference(observed, float((beyond + 1) / (len(drawn) + 1)), _interval(drawn), len(gaps))


def bootstrap_mean(sums: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval, over examples, of a weighted mean, such as accepted tokens a round.

    Args:
        sums: one for each example, such as its accepted tokens.
        weights: what the sums are divided by, such as the example's rounds; examples with a weight of 0 do not count.

    Raises:
        ValueError: with different numbers of both, or without a weight above 0.
    """
    _check(sums, weights)
    counting = np.asarray(weights, float) > 0
    if not counting.any():
        raise ValueError("no weight is above 0")
    return _interval(_resample(np.asarray(sums, float)[counting], np.asarray(weights, float)[counting]))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment: of many comparisons, one at p < 0.05 is no surprise; after it, it is.

    Returns:
        For each p, in their order, the smallest level at which its difference would still count.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = largest
    return adjusted


_DRAWS = 10_000
_NUMBERS_AT_ONCE = 2**22


def _resample(gaps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean gaps of `_DRAWS` samples of the examples, drawn with replacement and a fixed seed."""
    generator = np.random.default_rng(0)
    rows = max(1, _NUMBERS_AT_ONCE // len(gaps))
    parts = []
    for start in range(0, _DRAWS, rows):
        chosen = generator.integers(0, len(gaps), size=(min(rows, _DRAWS - start), len(gaps)))  # [draw, example]
        parts.append(gaps[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    return np.concatenate(parts)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _check(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} examples: a comparison needs the same ones, and at least one")
