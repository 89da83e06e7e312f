"""Decoding in which drafting and verifying overlap: while the target reads proposed tokens, branches grow after them.

In each round the target reads the last token of the text and what is proposed after it; meanwhile another process goes
on drafting as if all of that were accepted (PEARL, arXiv 2408.11850), with several tokens at the place that the target
decides (SpecBranch, arXiv 2506.01979). If the target takes one of them, that branch is what the next round begins with.
Otherwise the next round proposes nothing, and the target does not wait either: the round is a plain decoding step.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from radistill.errors import RadistillError
from radistill.models.endings import end_tokens
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.timing import timed
from radistill.speculation.branching.drafts import Drafted, Manner, Order
from radistill.speculation.branching.length import Length, newest, watched
from radistill.speculation.branching.process import DraftProcess, sharing_cores
from radistill.speculation.branching.rule import Verdict, judge
from radistill.speculation.caches import RowCache, read_prompts
from radistill.speculation.decode import Decoded, Text, check_request, read_proposal, rule_of
from radistill.speculation.sampling import Proposal, Rule, distribution
from radistill.speculation.states import History


@dataclass(frozen=True)
class Branched(Decoded):
    """Responses, and how they came about. Here the branch point counts as one proposed token of its round.

    Attributes:
        branched_by_round: for each response, tokens of all branches that were drafted during each round.
    """

    branched_by_round: list[list[int]]

    @property
    def branched(self) -> int:
        """Drafted tokens, of all branches of all responses."""
        return sum(map(sum, self.branched_by_round))

    @property
    def rollback_share(self) -> float:
        """Drafted tokens that were thrown away over drafted tokens; 0.0 where nothing was drafted.

        Every token of every branch counts as drafted, the heads included: also those of branches of which at most one
        can survive, and those that the end of a response made useless. A drafted token is thrown away unless it became
        text: as a proposed token that the target accepted, or as the head of the branch that it kept.
        """
        return 1 - self.accepted / self.branched if self.branched else 0.0

    @property
    def summary(self) -> str:
        """In one line, for a person."""
        share = f"rollback share {self.rollback_share:.0%} of {self.branched} drafted, all branches counted"
        return f"{super().summary}; {share}"


@torch.inference_mode()
def branching_generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    drafter: DraftProcess,
    *,
    draft_length: int,
    max_new_tokens: int,
    branches: int = 3,
    length: Length | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> Branched:
    """Answer token sequences as `models.generation.generate` does, with drafts from another process meanwhile.

    Greedy responses are those of `generate` token for token, but where rounding decides between two equal logits.
    Sampled ones have its distribution; each depends on the seed and its place among the prompts. On a CPU, the draft
    process has one of torch's threads and the target the others, at least one.

    Args:
        model, prompts, max_new_tokens, temperature, top_p, seed, on_tokens: as in `speculative_generate`.
        drafter: what a `process.draft_process` gives.
        draft_length: longest branch, its head included: steps of the drafter in a round.
        branches: at a place of no confidence; where the drafter's largest probability is q, floor of so many times
            (1 - q), and at least 1.
        length: how many of a kept branch's tokens are proposed; None goes by confidence alone.
        batch_size: 1; no other is built.

    Raises:
        RadistillError: as `speculative_generate`, for a larger batch, and if the draft process cannot go on.
    """
    length = Length() if length is None else length
    counts = {"draft_length": draft_length, "max_new_tokens": max_new_tokens, "branches": branches}
    check_request((model, drafter.drafter), prompts, counts, temperature, top_p, length.confidence)
    if batch_size != 1:
        raise RadistillError(f"generate: batch_size is {batch_size}, but branches are drafted for 1 prompt at a time")

    stops = end_tokens(model)
    # A network may want more of a branch than confidence does.
    unsure = length.confidence if length.network is None else None
    manner = Manner(model.anatomy.vocab_size, stops, temperature, top_p, unsure)
    drafter.begin(manner)
    texts = [Text(index, prompt, max_new_tokens) for index, prompt in enumerate(prompts)]
    started = time.perf_counter()
    watching = nullcontext(list[Tensor]()) if length.network is None else watched(model)
    with evaluating(model.network), sharing_cores(model), watching as states:
        for text in texts:
            rule = rule_of(temperature, top_p, [[seed, text.index]])
            wanted = Order("nothing", branches=branches, longest=draft_length - 1, seed=(seed, text.index))
            for new in _Rounds(model, text, drafter, rule, manner, wanted, length, states):
                if on_tokens is not None:
                    on_tokens(text.index, new)
    return Branched(
        responses=[text.response for text in texts],
        accepted_by_round=[text.accepted for text in texts],
        drafted_by_round=[text.drafted for text in texts],
        seconds=time.perf_counter() - started,
        branched_by_round=[text.branched for text in texts],
    )


class Round(NamedTuple):
    """What a round brought, what was drafted during it, what a roll-back needs, and seconds of the target's pass."""

    verdict: Verdict
    drafted: Drafted
    history: History
    seconds: float


def verify_meanwhile(
    model: Model, cache: RowCache, last: int, proposed: list[int], drafter: DraftProcess, rule: Rule, manner: Manner
) -> Round:
    """Let the target read the last token and proposed ones while the drafter, which was asked before, drafts; judge."""
    device = model.network.device
    newest_token, tokens = (torch.tensor([part], dtype=torch.long, device=device) for part in ([last], proposed))
    seconds, (logits, history) = timed(lambda: read_proposal(model, cache, newest_token, tokens), device)
    drafted = drafter.answer()
    probabilities = None
    if drafted.logits is not None:
        own = torch.from_numpy(drafted.logits)[None].to(device)
        probabilities = distribution(own, manner.temperature, manner.top_p)
    verdict = judge(rule, Proposal(tokens, [len(proposed)], probabilities), logits, drafted.heads)
    return Round(verdict, drafted, history, seconds)


@dataclass
class _Rounds:
    """The rounds over one text, of which each gives its new tokens.

    Attributes:
        wanted: how branches are drafted where nothing limits them.
        states: what the last layers have put out in the latest pass; empty if nobody looks at them.
    """

    model: Model
    text: Text
    drafter: DraftProcess
    rule: Rule
    manner: Manner
    wanted: Order
    length: Length
    states: list[Tensor]

    def __iter__(self) -> Iterator[list[int]]:
        text, stops = self.text, self.manner.stops
        cache = RowCache(self.model.network.config, 1)
        self._ask(replace(self.wanted, tokens=tuple(text.tokens)), [])
        read_prompts(self.model, cache, [text.tokens[:-1]])  # while the other process reads it too
        proposed: list[int] = []
        while True:
            verdict, drafted, history, _ = verify_meanwhile(
                self.model, cache, text.tokens[-1], proposed, self.drafter, self.rule, self.manner
            )
            accepted = proposed[: verdict.accepted]
            new = text.append(len(proposed) + bool(drafted.heads), accepted, verdict.following, stops)
            text.accepted[-1] += verdict.branch is not None
            text.branched.append(drafted.tokens)
            finished = not text.room or new[-1] in stops
            if not finished:
                cache.roll_back([len(proposed) - len(accepted)], history)
                order = self._order(verdict, drafted, new, len(proposed))
                proposed = drafted.continuations[order.branch][: order.proposed] if order.start == "branch" else []
                self._ask(order, proposed)
            yield new
            if finished:
                return

    def _ask(self, order: Order, proposed: list[int]) -> None:
        """Let the other process draft, as far as the response has room and is not at its end already."""
        room = self.text.room - len(proposed) - 1  # if all of them are accepted
        ending = room < 1 or (len(proposed) > 0 and proposed[-1] in self.manner.stops)
        self.drafter.ask(
            replace(
                order,
                branches=0 if ending else self.wanted.branches,
                longest=min(self.wanted.longest, room - 1),
                seed=(*self.wanted.seed, len(self.text.accepted)),
            )
        )

    def _order(self, verdict: Verdict, drafted: Drafted, new: list[int], proposed: int) -> Order:
        """How the text goes on: with the branch that was kept, or anew after the new tokens."""
        if verdict.branch is None:
            whole = verdict.accepted == proposed
            return Order("trunk" if whole else "root", tuple(new[-1:] if whole else new))
        seen = None
        if self.states:
            place, token = (
                torch.tensor([one], device=self.model.network.device) for one in (verdict.accepted, new[-1])
            )
            seen = newest(self.model, self.states, place, token)[0]
        count = self.length.proposed(drafted.confidences[verdict.branch], seen)
        return Order("branch", branch=verdict.branch, proposed=count)
