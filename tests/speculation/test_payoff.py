"""Whether speculation pays, against every course that decoding can take, played out one by one."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from radistill.speculation.acceptance import rounds_of
from radistill.speculation.payoff import (
    DRAFT_LENGTHS,
    Payoff,
    RoundCosts,
    break_even,
    rounds_over,
    speedups,
)

COSTS = RoundCosts(
    context=100,
    batch_size=1,
    plain=1.0,
    draft={1: 0.1, 2: 0.25, 4: 0.5, 16: 2.0},
    verify={2: 1.1, 3: 1.2, 5: 1.5, 17: 3.5},
    catch_up=0.05,
)
FREE = RoundCosts(100, 1, 1.0, {1: 0.0, 16: 0.0}, {2: 1.0, 17: 1.0}, 0.0)
AS_DEAR_AS_THE_TARGET = RoundCosts(100, 1, 1.0, {1: 1.0, 16: 16.0}, {2: 1.2, 17: 2.0}, 0.0)


def on_a_line(table: dict[int, float], count: int) -> float:
    below = max(one for one in table if one <= count)
    above = min(one for one in table if one >= count)
    share = (count - below) / (above - below) if above > below else 0.0
    return (1 - share) * table[below] + share * table[above]


def seconds_of(course: Sequence[bool], draft_length: int, costs: RoundCosts) -> float:
    """Seconds of the rounds over a text whose tokens are accepted or not."""
    seconds, position = 0.0, 0
    for accepted in rounds_of(course, draft_length):
        drafted = min(draft_length, len(course) - position)
        seconds += on_a_line(costs.draft, drafted) + on_a_line(costs.verify, drafted + 1)
        seconds += costs.catch_up if accepted == drafted else 0.0
        position += accepted + 1
    return seconds


def courses(acceptance: Sequence[float]) -> list[tuple[float, list[bool]]]:
    """Every way in which tokens can be accepted or not, with its probability."""
    found = []
    for course in itertools.product([False, True], repeat=len(acceptance)):
        chances = [one if accepted else 1 - one for one, accepted in zip(acceptance, course, strict=True)]
        found.append((float(np.prod(chances)), list(course)))
    return found


@pytest.mark.parametrize("draft_length", [1, 2, 3, 9])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_rounds_are_the_mean_of_all_courses(draft_length: int, tokens: int) -> None:
    acceptance = list(np.random.default_rng(tokens).uniform(size=tokens))
    acceptance[0] = 1.0  # and hostile ones
    acceptance[tokens // 2] = 0.0
    every = courses(acceptance)
    rounds = rounds_over(acceptance, draft_length)
    assert rounds.number == pytest.approx(sum(p * len(rounds_of(course, draft_length)) for p, course in every))
    accepted = [0.0] * draft_length
    tried = [0.0] * draft_length
    for p, course in every:
        position = 0
        for count in rounds_of(course, draft_length):
            for index in range(min(draft_length, tokens - position)):
                tried[index] += p * (index <= count)
                accepted[index] += p * (index < count)
            position += count + 1
    assert rounds.accepted == pytest.approx(accepted)
    assert rounds.tried == pytest.approx(tried)
    assert rounds.seconds(COSTS) == pytest.approx(
        sum(p * seconds_of(course, draft_length, COSTS) for p, course in every)
    )


def test_greedy_rounds_are_those_of_decoding() -> None:
    rng = random.Random(1)
    for length in DRAFT_LENGTHS:
        agreement = [rng.random() < 0.7 for _ in range(50)]
        rounds = rounds_over(agreement, length)
        played = rounds_of(agreement, length)
        assert set(rounds.begun) <= {0.0, 1.0}
        assert rounds.number == len(played)
        assert rounds.accepted.sum() == sum(played)


def test_a_batch_catches_up_where_any_row_accepted_all() -> None:
    three = RoundCosts(100, 3, 1.0, {1: 0.0, 16: 0.0}, {2: 0.0, 17: 0.0}, 1.0)
    assert three.round(np.array([4]), np.array([0.2])) == pytest.approx(1 - 0.8**3)


def test_speed_grows_with_acceptance_and_falls_with_costs() -> None:
    shares = np.linspace(0, 1, 9)
    best = [max(speedups([[share] * 40], COSTS).values()) for share in shares]
    assert best == sorted(best)
    dearer = RoundCosts(100, 1, 1.0, {1: 0.2, 16: 3.0}, COSTS.verify, COSTS.catch_up)
    assert all(
        speedups([[0.8] * 40], dearer)[length] < speed for length, speed in speedups([[0.8] * 40], COSTS).items()
    )


def test_the_ends() -> None:
    none, all_of_them = speedups([[0.0] * 34], FREE), speedups([[1.0] * 34], FREE)
    assert none == dict.fromkeys(DRAFT_LENGTHS, 1.0)  # each round brings the target's own token
    assert all_of_them[16] == 17.0
    assert break_even(FREE, 34) == 0.0
    assert break_even(AS_DEAR_AS_THE_TARGET, 34) is None
    payoff = Payoff.of([[1.0] * 34], AS_DEAR_AS_THE_TARGET)
    assert payoff.verdict.startswith("no: at best ")
    assert payoff.verdict.endswith("it would not pay even if every token were accepted")


def test_break_even_is_where_the_speed_is_that_of_plain_decoding() -> None:
    found = break_even(COSTS, 60)
    assert found is not None
    assert 0 < found < 1
    assert max(speedups([[found] * 60], COSTS).values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("acceptance", "begins", "ends"),
    [
        ([[0.9] * 40, [0.8] * 40], "yes: 1.", "acceptance and has 85%"),
        ([[0.05] * 40, [0.02] * 40], "no: at best 0.", "acceptance and has 4%"),
        ([[0.0] * 40] * 5 + [[0.85] * 40] * 2, "perhaps: ", "acceptance and has 24%"),
    ],
)
def test_a_verdict(acceptance: list[list[float]], begins: str, ends: str) -> None:
    payoff = Payoff.of(acceptance, COSTS)
    assert payoff.verdict.startswith(begins)
    assert payoff.verdict.endswith(ends)
    assert "\n" not in payoff.verdict
    low, high = payoff.speedup.interval
    assert low <= payoff.speedup.value <= high
    assert payoff.by_length[payoff.draft_length] == max(payoff.by_length.values()) == payoff.speedup.value


def test_uncertain_timings_make_an_uncertain_speed() -> None:
    def turn(plain: float) -> RoundCosts:
        return RoundCosts(100, 1, plain, COSTS.draft, COSTS.verify, -0.1)

    costs = RoundCosts.mean([turn(plain) for plain in (0.25, 1.75, 1.0)])
    assert (costs.plain, costs.catch_up) == (1.0, 0.0)
    assert costs.draft == pytest.approx(COSTS.draft)
    steady = RoundCosts.mean([turn(1.0)] * 3)
    texts = [[0.9] * 40] * 4
    low, high = Payoff.of(texts, steady).speedup.interval
    assert low == pytest.approx(high)
    low, high = Payoff.of(texts, costs).speedup.interval
    assert low < 0.7 * Payoff.of(texts, steady).speedup.value < high / 2
