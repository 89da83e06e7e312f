"""Whether speculation pays: from the acceptance of each token and the cost of a round to the speed of decoding.

A round with draft length k drafts k tokens, verifies them in one pass of the target over k + 1 tokens, and yields the
accepted ones and one of the target's own (arXiv 2211.17192). Its gain is that over the plain steps that it saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from radistill.statistics import bootstrap_mean

LONGEST_DRAFT = 16
DRAFT_LENGTHS = range(1, LONGEST_DRAFT + 1)
_EXACT = 1e-4
_DRAWS = 400


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, bootstrapped over documents."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, sums: Sequence[float], weights: Sequence[float]) -> "Estimate":
        """The weighted mean of documents that each have a sum and a weight."""
        return cls(float(np.sum(sums) / np.sum(weights)), bootstrap_mean(sums, weights))

    @property
    def above_one(self) -> str:
        """In one word whether it is: yes or no if its interval lies above or below 1, else perhaps."""
        low, high = self.interval
        return "yes" if low > 1 else "perhaps" if high > 1 else "no"


def best_in_words(speedup: Estimate, draft_length: int) -> str:
    """Whether speculation pays at its best draft length, and how much."""
    (low, high), word = speedup.interval, speedup.above_one
    return (
        f"{word}: {'at best ' if word == 'no' else ''}{speedup.value:.2f} times plain decoding (draft length "
        f"{draft_length}, 95 % interval {low:.2f} to {high:.2f})"
    )


class Rounds(NamedTuple):
    """What is expected of the rounds over one text.

    Attributes:
        begun: [tokens], the chance that a round begins before each token.
        kept: [tokens, draft_length], the chance that a round which begins there accepts its first 1, 2, ... tokens; 0
            beyond the end of the text.
    """

    begun: np.ndarray
    kept: np.ndarray

    @property
    def number(self) -> float:
        """Rounds."""
        return float(self.begun.sum())

    @property
    def accepted(self) -> np.ndarray:
        """[draft_length], the number of first, second, ... drafted tokens that are accepted."""
        return self.begun @ self.kept

    @property
    def tried(self) -> np.ndarray:
        """[draft_length], the number of them whose fate is decided by the target: those before them are accepted."""
        tokens, length = self.kept.shape
        earlier = np.concatenate([np.ones((tokens, 1)), self.kept[:, :-1]], axis=1)
        return self.begun @ (earlier * (self._drafted()[:, None] > np.arange(length)))

    @property
    def drafted(self) -> float:
        """Drafted tokens."""
        return float(self.begun @ self._drafted())

    def seconds(self, costs: "RoundCosts") -> float:
        """Seconds of all rounds."""
        drafted = self._drafted()
        full = self.kept[np.arange(len(drafted)), drafted - 1]
        return float(self.begun @ costs.round(drafted, full))

    def _drafted(self) -> np.ndarray:
        """[tokens], drafted tokens of a round; no more than the text has left, as in decoding."""
        tokens, length = self.kept.shape
        return np.minimum(length, np.arange(tokens, 0, -1))


def rounds_over(acceptance: Sequence[float], draft_length: int) -> Rounds:
    """Follow all courses that draft-and-verify can take over one text, each with its probability.

    Where the acceptance is 0 or 1 (greedy decoding) there is one course, that of `rounds_of`. Where it is a probability
    (sampling), tokens are taken to be accepted independently, and the text to be the same whatever was accepted.

    Args:
        acceptance: for each token of the text, the probability that the target accepts the draft's.
        draft_length: tokens drafted in a round, at least 1.
    """
    tokens = len(acceptance)
    padded = np.concatenate([np.asarray(acceptance, float), np.zeros(draft_length - 1)])
    kept = np.lib.stride_tricks.sliding_window_view(padded, draft_length).cumprod(axis=1)
    # [tokens, draft_length + 1]: the chance that exactly 0, 1, ... tokens are accepted.
    edge = np.ones((tokens, 1))
    exactly = np.concatenate([edge, kept], axis=1) - np.concatenate([kept, 0 * edge], axis=1)
    begun = np.zeros(tokens + draft_length + 1)
    begun[0] = 1
    for start in range(tokens):
        if begun[start]:
            begun[start + 1 : start + draft_length + 2] += begun[start] * exactly[start]
    return Rounds(begun[:tokens], kept)


@dataclass(frozen=True)
class RoundCosts:
    """Seconds of what decoding does, for a batch, at one context.

    Attributes:
        context: tokens in the cache.
        batch_size: rows that run at once.
        plain: of a decoding step of the target without a drafter.
        draft: of drafting so many tokens; between the timed counts, on a straight line.
        verify: of the target's pass over so many tokens, with judging them and forgetting the rejected ones.
        catch_up: of reading the last drafted token, which a drafter reads only if all are accepted.
        turns: the single timings whose means these are.
    """

    context: int
    batch_size: int
    plain: float
    draft: dict[int, float]
    verify: dict[int, float]
    catch_up: float
    turns: tuple["RoundCosts", ...] = ()

    @classmethod
    def mean(cls, turns: Sequence["RoundCosts"]) -> "RoundCosts":
        """The mean of each cost over several timings of the same.

        A median would be no fairer where other work shares the machine: it forgets what holds up a few short steps, but
        not what holds up a long one, which is as many steps in a row.
        """

        def means(costs: Sequence[dict[int, float]]) -> dict[int, float]:
            return {count: float(np.mean([cost[count] for cost in costs])) for count in costs[0]}

        return cls(
            context=turns[0].context,
            batch_size=turns[0].batch_size,
            plain=float(np.mean([turn.plain for turn in turns])),
            draft=means([turn.draft for turn in turns]),
            verify=means([turn.verify for turn in turns]),
            catch_up=max(0.0, float(np.mean([turn.catch_up for turn in turns]))),
            turns=tuple(turns),
        )

    def resampled(self, generator: np.random.Generator) -> "RoundCosts":
        """The means of timings that are drawn from these with replacement; itself where none are known."""
        if not self.turns:
            return self
        return self.mean([self.turns[index] for index in generator.integers(0, len(self.turns), len(self.turns))])

    def round(self, drafted: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Seconds of rounds, from the drafted tokens of each and the chance that a row accepts all of them."""
        draft = np.interp(drafted, list(self.draft), list(self.draft.values()))
        verify = np.interp(drafted + 1, list(self.verify), list(self.verify.values()))
        return draft + verify + (1 - (1 - full) ** self.batch_size) * self.catch_up

    @property
    def draft_step(self) -> float:
        """Seconds of one more drafted token."""
        shortest, longest = min(self.draft), max(self.draft)
        return (self.draft[longest] - self.draft[shortest]) / (longest - shortest)


def speedups(texts: Sequence[Sequence[float]], costs: RoundCosts) -> dict[int, float]:
    """Speed of speculation over that of plain decoding, by draft length, from the acceptance of each token of texts."""
    tokens = sum(map(len, texts))
    return {
        length: tokens * costs.plain / sum(rounds_over(text, length).seconds(costs) for text in texts)
        for length in DRAFT_LENGTHS
    }


def break_even(costs: RoundCosts, tokens: int) -> float | None:
    """The smallest acceptance with which the best draft length is as fast as plain decoding; None where none is.

    It is taken to be the same for every token of a text of `tokens` tokens.
    """

    def pays(acceptance: float) -> bool:
        return max(speedups([[acceptance] * tokens], costs).values()) >= 1

    if not pays(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > _EXACT:
        middle = (low + high) / 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high if low else 0.0


@dataclass(frozen=True)
class Payoff:
    """What speculation brings at its best draft length.

    Attributes:
        draft_length: the best.
        speedup: of it, over plain decoding; the interval is bootstrapped over texts and timings.
        by_length: the speed-up of every draft length.
        acceptance: mean acceptance of a token.
        break_even: the acceptance that it would need; None where none is enough.
    """

    draft_length: int
    speedup: Estimate
    by_length: dict[int, float]
    acceptance: float
    break_even: float | None

    @classmethod
    def of(cls, texts: Sequence[Sequence[float]], costs: RoundCosts) -> "Payoff":
        """From the acceptance of each token of each text, none of which is empty, and the costs of rounds."""
        by_length = speedups(texts, costs)
        best = max(by_length, key=by_length.__getitem__)
        tokens = sum(map(len, texts))
        return cls(
            draft_length=best,
            speedup=Estimate(by_length[best], _speedup_interval(texts, costs, best)),
            by_length=by_length,
            acceptance=sum(map(sum, texts)) / tokens,
            break_even=break_even(costs, round(tokens / len(texts))),
        )

    @property
    def verdict(self) -> str:
        """In one line whether it pays."""
        best = best_in_words(self.speedup, self.draft_length)
        if self.break_even is None:
            return f"{best}; it would not pay even if every token were accepted"
        needs = "it needs" if self.speedup.above_one == "yes" else "it would need"
        return f"{best}; {needs} {self.break_even:.0%} acceptance and has {self.acceptance:.0%}"


def _speedup_interval(texts: Sequence[Sequence[float]], costs: RoundCosts, draft_length: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    rounds = [rounds_over(text, draft_length) for text in texts]
    drawn = []
    for _ in range(_DRAWS):
        timed = costs.resampled(generator)
        seconds = np.array([text.seconds(timed) for text in rounds])
        chosen = generator.integers(0, len(texts), len(texts))
        drawn.append(sum(len(texts[index]) for index in chosen) * timed.plain / seconds[chosen].sum())
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
