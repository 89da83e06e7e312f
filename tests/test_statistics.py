"""Paired statistics against naive computations and values that are known."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from radistill.statistics import bootstrap_mean, holm, mcnemar, paired_bootstrap, ratio_interval, wilson


def naive_mcnemar(only_first: int, only_second: int) -> float:
    """All outcomes of `n` fair coins that are no likelier than the one that was seen, as exact fractions."""
    n = only_first + only_second
    chance = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    return float(sum(c for c in chance if c <= chance[only_first]))


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (0, 5), (0, 6), (3, 4), (2, 12), (20, 20), (15, 40), (130, 90)]
)
def test_mcnemar_is_the_sum_over_fair_coins(only_first: int, only_second: int) -> None:
    found = mcnemar(*outcomes(7, only_first, only_second, 11))
    assert found.p == pytest.approx(naive_mcnemar(only_first, only_second), rel=1e-9)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.difference == pytest.approx((only_second - only_first) / found.n)
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_mcnemar_at_known_values() -> None:
    assert mcnemar(*outcomes(0, 0, 5, 0)).p == pytest.approx(2 / 32)
    assert mcnemar(*outcomes(50, 0, 6, 50)).p == pytest.approx(2 / 64)
    assert mcnemar(*outcomes(50, 2, 12, 50)).p == pytest.approx(0.01293945, abs=1e-8)
    assert mcnemar(*outcomes(50, 0, 0, 50)).p == 1.0
    assert mcnemar(*outcomes(50, 0, 0, 50)).interval == (0.0, 0.0)


@pytest.mark.slow
def test_mcnemar_finds_no_difference_too_often() -> None:
    """Of 400 pairs of equally good models, at most 5 % and a little may be told apart."""
    generator = random.Random(0)
    found = 0
    for _ in range(400):
        first = [generator.random() < 0.5 for _ in range(60)]
        second = [generator.random() < 0.5 for _ in range(60)]
        found += mcnemar(first, second).p < 0.05
    assert found <= 30


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    generator = random.Random(1)
    first = [generator.gauss(10, 3) for _ in range(300)]
    second = [value + generator.gauss(0.2, 1) for value in first]
    found = paired_bootstrap(first, second, [1.0] * 300)
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(gaps) / 300
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 299 / 300)
    assert found.difference == pytest.approx(mean)
    assert found.interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert found.p == pytest.approx(math.erfc(abs(mean / error) / math.sqrt(2)), abs=0.01)


def test_the_bootstrap_resamples_sums_and_weights_together() -> None:
    """Nats a byte is a ratio of sums, not a mean of ratios."""
    found = paired_bootstrap([10.0, 1.0], [20.0, 1.0], [10.0, 1.0])
    assert found.difference == pytest.approx(10 / 11)
    assert found.interval == pytest.approx((0.0, 1.0))


def test_equal_models_are_not_apart() -> None:
    found = paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert (found.difference, found.p, found.interval) == (0.0, 1.0, (0.0, 0.0))


def test_the_same_data_give_the_same_interval() -> None:
    first, second, weights = [1.0, 2.0, 5.0], [2.0, 2.5, 4.0], [3.0, 2.0, 5.0]
    assert paired_bootstrap(first, second, weights) == paired_bootstrap(first, second, weights)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    # Wilson's own equation, solved by hand: the shares at which the observed one lies 1.96 standard errors away.
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (81, 263, (0.2553, 0.3662)), (10, 10, (0.7225, 1.0))],
)
def test_wilson_at_known_values(successes: int, trials: int, interval: tuple[float, float]) -> None:
    assert wilson(successes, trials) == pytest.approx(interval, abs=1e-4)


def test_a_ratio_s_interval_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for shares in ([0.5, 0.1, 0.1], [0.8, 0.02, 0.08], [0.3, 0.02, 0.02], [0.9, 0.03, 0.0]):
        truth, each = (shares[0] + shares[2]) / (shares[0] + shares[1]), [*shares, 1 - sum(shares)]
        tables = generator.multinomial(60, each, size=3000)
        ends = [ratio_interval(*map(int, table[:3])) for table in tables]
        covered.append(np.mean([low <= truth <= high for low, high in ends]))
    assert min(covered) > 0.935
    assert covered[0] < 0.965  # where few examples differ, it is wider than it need be


@pytest.mark.parametrize("counts", [(51, 4, 4), (9, 0, 0), (0, 3, 2), (40, 12, 0), (700, 1, 2)])
def test_a_ratio_s_interval_holds_the_ratio_and_turns_round_with_it(counts: tuple[int, int, int]) -> None:
    both, first, second = counts
    low, high = ratio_interval(*counts)
    assert low < (both + second) / (both + first) < high
    turned = ratio_interval(both, second, first)
    assert (1 / turned[1], 1 / turned[0]) == pytest.approx((low, high))


def test_a_ratio_without_differences_is_surer_with_more_examples() -> None:
    lows = [ratio_interval(n, 0, 0)[0] for n in (1, 9, 57, 400)]
    assert lows == sorted(lows)
    # Nothing differs, so the standard errors of both shares add up to the square root of two: z is less by that.
    assert lows[2] == pytest.approx(57 / (57 + 1.96**2 / 2 * 59 / 58), abs=1e-4)


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 0, 3), (-1, 2, 2)])
def test_a_ratio_to_nothing_is_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not a ratio of shares"):
        ratio_interval(*counts)


@pytest.mark.parametrize("trials", [1, 7, 50, 1000])
def test_wilson_holds_the_share_itself_at_both_ends(trials: int) -> None:
    assert wilson(0, trials)[0] == 0
    assert wilson(trials, trials)[1] == 1


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_a_comparison_needs_the_same_examples(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="the same ones"):
        mcnemar(first, second)
    with pytest.raises(ValueError, match="the same ones"):
        paired_bootstrap(first, second, [1.0] * len(first))


def test_weights_must_be_positive() -> None:
    with pytest.raises(ValueError, match="a weight is 0"):
        paired_bootstrap([1.0], [2.0], [0.0])


def test_the_interval_of_a_weighted_mean() -> None:
    rng = random.Random(3)
    weights = [rng.randint(1, 9) for _ in range(400)]
    sums = [weight * (5 + rng.gauss(0, 1)) for weight in weights]
    mean = sum(sums) / sum(weights)
    # By hand: the error of a ratio of sums.
    error = math.sqrt(sum((s - mean * w) ** 2 for s, w in zip(sums, weights, strict=True))) / sum(weights)
    assert bootstrap_mean(sums, weights) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert bootstrap_mean([2.0, 0.0], [1.0, 0.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no weight is above 0"):
        bootstrap_mean([0.0], [0.0])
