"""What the rounds of speculative decoding cost on this machine: the decoder's own steps, timed one by one."""

import statistics
from collections.abc import Callable

import torch

from radistill.errors import RadistillError
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.timing import timed
from radistill.speculation.caches import RowCache, read_prompts, read_tokens
from radistill.speculation.decode import rule_of, verify
from radistill.speculation.drafters import Draft, Drafter
from radistill.speculation.drafting import Drafting
from radistill.speculation.payoff import RoundCosts

REPEATS = 7
_DRAFTED = (1, 2, 4, 8, 16)
_PLAIN_STEPS = 8


def time_rounds(
    target: Model,
    drafter: Drafter,
    *,
    context: int,
    batch_size: int = 1,
    sampled: bool = False,
    repeats: int = REPEATS,
    advance: Callable[[], object] = lambda: None,
) -> RoundCosts:
    """Time plain steps, drafts of 1 to 16 tokens and verifications of 2 to 17, with a separate draft cache.

    They take turns, so that what slows the machine down for a while slows all of them; each figure is the mean of
    `repeats` turns after one to warm up. Nothing is accepted; in a batch, rows take turns to accept one token, because
    rows that are rolled back by different numbers of tokens are moved. The caches grow by some hundred tokens at most.

    Args:
        target, drafter: the pair, with `context` tokens in the caches.
        batch_size: rows that run at once.
        sampled: draw tokens instead of taking the likeliest.
        repeats: timed turns.
        advance: called after each of the `repeats` + 1 turns.

    Raises:
        RadistillError: if a model cannot hold the context, or its logits are NaN.
    """
    draft = Draft.of(target, drafter)
    check_context(draft, context)
    turns = []
    with torch.inference_mode(), evaluating(target.network, draft.model.network):
        clock = _Clock(draft, context, batch_size, sampled)
        for number in range(repeats + 1):
            turns.append(clock.turn(number))
            advance()
    return RoundCosts.mean(turns[1:])


def check_context(draft: Draft, context: int) -> None:
    """Refuse a context of so many tokens that target or drafter cannot hold it."""
    for model in (draft.target, draft.model):
        longest = model.context_length
        if context < 2 or (longest is not None and context > longest):
            most = "at least 2 tokens" if longest is None else f"from 2 to {longest} tokens"
            raise RadistillError(f"drafter: context is {context}, but {model.source} takes {most}")


class _Clock:
    """A batch in the middle of its text, whose steps are timed; what they accept is given, not judged."""

    def __init__(self, draft: Draft, context: int, batch_size: int, sampled: bool) -> None:
        self.rows = range(batch_size)
        self._context = context
        self._target = draft.target
        self._device = draft.target.network.device
        self._source = draft.model.source
        self._rule, self._plain_rule = (rule_of(float(sampled), 1.0, [0] * batch_size) for _ in range(2))
        self._last = torch.zeros(batch_size, 1, dtype=torch.long, device=self._device)
        prompts = [[token % draft.target.anatomy.vocab_size for token in range(context - 1)]] * batch_size
        self._cache = RowCache(self._target.network.config, batch_size)
        read_prompts(self._target, self._cache, prompts)
        self._plain = self._cache.fork()
        self._drafting = Drafting(draft, self._rule, prompts=prompts, stops=frozenset(), confidence=None)

    def turn(self, number: int) -> RoundCosts:
        """Every cost once."""
        plain = statistics.fmean(self.plain() for _ in range(_PLAIN_STEPS))
        draft, verified = {}, {}
        for drafted in _DRAFTED:
            accepted = [(row + number) % 2 * (drafted > 1 < len(self.rows)) for row in self.rows]
            draft[drafted], verified[drafted + 1] = self.round(drafted, accepted)
        _, rest = self.round(1, [int(row == 0) for row in self.rows])
        behind, _ = self.round(1, [0 for _ in self.rows])
        catch_up = rest + behind - draft[1] - verified[2]
        return RoundCosts(self._context, len(self.rows), plain, draft, verified, catch_up)

    def plain(self) -> float:
        """Seconds of a step without a drafter."""

        def step() -> None:
            self._plain_rule.draft(read_tokens(self._target, self._plain, self._last, keep=1)[:, -1])[0].tolist()

        return timed(step, self._device)[0]

    def round(self, drafted: int, accepted: list[int]) -> tuple[float, float]:
        """Seconds of drafting, and of all else."""
        proposing, proposal = timed(
            lambda: self._drafting.propose(self._cache, self._last, [drafted] * len(self.rows)), self._device
        )
        if min(proposal.counts) < drafted:
            raise RadistillError(f"{self._source}: the drafter's logits are NaN, so it proposes nothing")

        def finish() -> None:
            *_, history = verify(self._target, self._cache, self._last, proposal, self._rule)
            self._cache.roll_back([drafted - count for count in accepted], history)
            self._drafting.settle(proposal, accepted)

        return proposing, timed(finish, self._device)[0]
