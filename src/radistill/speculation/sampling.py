"""Which drafted tokens a target accepts, and what it writes instead: greedy, and by speculative sampling.

Speculative sampling (arXiv 2211.17192) draws token x from the draft's distribution q and accepts it with probability
min(1, p(x) / q(x)); after a rejection it draws from norm(max(0, p - q)). What comes out is distributed as p.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Proposal:
    """What a draft proposes to a target, for each row of a batch.

    Attributes:
        tokens: [batch, drafted], long; in row b only the first `counts[b]` are proposed.
        counts: number of proposed tokens of each row.
        probabilities: [batch, drafted, vocab], the distributions that the tokens were drawn from; None when greedy.
    """

    tokens: Tensor
    counts: Sequence[int]
    probabilities: Tensor | None

    def proposed(self) -> Tensor:
        """[batch, drafted], bool: which tokens are proposed."""
        counts = torch.tensor(list(self.counts), device=self.tokens.device)
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < counts[:, None]


class Judgement(NamedTuple):
    """What a target makes of a proposal.

    Attributes:
        accepted: [batch], long, the number of drafted tokens that it accepts.
        following: [batch], long, the token that it writes after them.
    """

    accepted: Tensor
    following: Tensor


class Greedy:
    """The likeliest token; a drafted token is accepted where it is the target's."""

    def draft(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [batch] for logits [batch, vocab], and the distributions that they were drawn from: none."""
        return logits.argmax(dim=-1), None

    def judge(self, proposal: Proposal, logits: Tensor) -> Judgement:
        """Judge a proposal by the target's logits before and after each token, [batch, drafted + 1, vocab]."""
        own = logits.argmax(dim=-1)
        agree = (proposal.tokens == own[:, :-1]) & proposal.proposed()
        accepted = agree.long().cumprod(dim=1).sum(dim=1)
        return Judgement(accepted, own.gather(1, accepted[:, None]).squeeze(1))

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch; nothing is kept for a row."""


class Sampling:
    """Speculative sampling, each row with random numbers of its own, so that its batch has no influence on it.

    Every place of a response has three numbers: one to draft a token there, one to accept it, one to write another. A
    place that was drafted and given up meets the same numbers again in the next round. They are still independent of
    the text: of what they decided, nothing was kept.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        """Sample after `temperature` and `top_p` as `models.generation.generate` does, with a seed for each row."""
        self.temperature = temperature
        self.top_p = top_p
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._numbers = [torch.empty(0, 3, dtype=torch.float64) for _ in seeds]
        self._written = [0] * len(seeds)  # tokens of each response so far
        self._drafted = 0  # tokens in this round

    def draft(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw one token for each row, [batch]; the distributions are [batch, vocab]."""
        probabilities = distribution(logits, self.temperature, self.top_p)
        uniform = self._uniform(self._drafted, 1)[:, 0, 0].to(logits.device)
        self._drafted += 1
        return draw(probabilities, uniform), probabilities

    def judge(self, proposal: Proposal, logits: Tensor) -> Judgement:
        """Accept with probability min(1, p / q), then draw from what is left of p."""
        assert proposal.probabilities is not None
        rows, drafted = proposal.tokens.shape
        target = distribution(logits, self.temperature, self.top_p)
        uniform = self._uniform(0, drafted + 1).to(logits.device)
        accepted = accepted_tokens(proposal, target[:, :-1], uniform[:, :-1, 1])
        every_row = torch.arange(rows, device=logits.device)
        rejected = proposal.probabilities.new_zeros(target[:, 0].shape)
        refused = (proposal.proposed().sum(dim=1) > accepted).nonzero().squeeze(1)
        rejected[refused] = proposal.probabilities[refused, accepted[refused]]
        rest = residual(target[every_row, accepted], rejected)
        following = draw(rest, uniform[every_row, accepted, 2])
        self._written = [before + new + 1 for before, new in zip(self._written, accepted.tolist(), strict=True)]
        self._drafted = 0
        return Judgement(accepted, following)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only the numbers of these rows."""
        self._generators = [self._generators[row] for row in rows]
        self._numbers = [self._numbers[row] for row in rows]
        self._written = [self._written[row] for row in rows]

    def _uniform(self, start: int, count: int) -> Tensor:
        """[batch, count, 3], the numbers of each row's places from `start` after the tokens that it has."""
        found = []
        for row, written in enumerate(self._written):
            while len(self._numbers[row]) < written + start + count:
                more = torch.rand(64, 3, generator=self._generators[row], dtype=torch.float64)
                self._numbers[row] = torch.cat([self._numbers[row], more])
            found.append(self._numbers[row][written + start :][:count])
        return torch.stack(found)


Rule = Greedy | Sampling
"""How draft and target choose tokens."""


def distribution(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities that sampling draws from, [..., vocab], in float64; the rules are transformers' own."""
    scores = logits.reshape(-1, logits.shape[-1]).float()
    none = scores.new_zeros(0, 0, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(none, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(none, scores)
    return scores.double().softmax(dim=-1).view(logits.shape)


def accepted_tokens(proposal: Proposal, target: Tensor, uniform: Tensor) -> Tensor:
    """Number of leading tokens that are accepted, [batch].

    Args:
        proposal: tokens and the draft's distributions.
        target: [batch, drafted, vocab], the target's distributions.
        uniform: [batch, drafted], numbers from [0, 1[.
    """
    assert proposal.probabilities is not None
    token = proposal.tokens[:, :, None]
    p, q = target.gather(2, token).squeeze(2), proposal.probabilities.gather(2, token).squeeze(2)
    return ((uniform * q < p) & proposal.proposed()).long().cumprod(dim=1).sum(dim=1)


def residual(target: Tensor, rejected: Tensor) -> Tensor:
    """max(0, p - q), [batch, vocab], not normalised; p itself where nothing is left of it.

    Args:
        target: p, [batch, vocab].
        rejected: q, the distribution of the token that was rejected, or zeros where none was.
    """
    rest = (target - rejected).clamp(min=0)
    return torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, target)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw one index for each row with a probability proportional to its weight.

    Args:
        weights: [batch, vocab], float64, not negative, some above 0 in each row.
        uniform: [batch], numbers from [0, 1[.

    Returns:
        [batch], long; never an index of weight 0. Where weights are NaN, an index that means nothing.
    """
    total = weights.cumsum(dim=-1)
    threshold = torch.minimum(uniform * total[:, -1], torch.nextafter(total[:, -1], torch.zeros_like(uniform)))
    drawn = torch.searchsorted(total, threshold[:, None], right=True).squeeze(1)
    return drawn.clamp(max=weights.shape[-1] - 1)
