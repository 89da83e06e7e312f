"""What overlapped decoding brings, without decoding: from what is known of each token of the target's own answers.

A round with b proposed tokens takes as long as the target's pass over b + 1 tokens or the drafting meanwhile, whichever
is longer. The course of the rounds is followed as `payoff.rounds_over` does it: where acceptance is 0 or 1 (greedy
decoding), there is one course, that of the decoder; else every course counts by its probability.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.acceptance import confidences, expected_acceptance, likeliest_is
from radistill.speculation.branching.length import ALL, NONE, SOME, LengthNetwork, states_in, until_unsure
from radistill.speculation.branching.rule import branch_count
from radistill.speculation.drafters import Draft
from radistill.speculation.masks import ComponentMask
from radistill.speculation.measure import by_token


@dataclass(frozen=True)
class Rows:
    """What is known of each token of an answer.

    Attributes:
        accepted: the chance that the target accepts the drafter's token there.
        confidence: the drafter's largest probability.
        heads: branches, if the token's place is a branch point.
        kept: the chance that the target's token is the head of one of them.
        expected: what a network expects of a continuation that begins there; None without a network.
    """

    accepted: np.ndarray
    confidence: np.ndarray
    heads: np.ndarray
    kept: np.ndarray
    expected: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.accepted)


@dataclass(frozen=True)
class OverlapCosts:
    """Seconds of what a round does, timed while the two processes run side by side.

    Attributes:
        passes: of the target's pass over so many tokens.
        anew: of the drafter's reading a token that it did not expect.
        kept: of its taking up a branch that was kept.
        steps: of a step of the drafter, by the number of branches.
        rest: of a round, beside the longer of the two: messages, judging, forgetting.
    """

    passes: dict[int, float]
    anew: float
    kept: float
    steps: dict[int, float]
    rest: float

    @property
    def ratio(self) -> float:
        """c: steps of the drafter that a step of the target takes. No draft longer than that is hidden behind it."""
        return self.passes[1] / self.steps[1]

    def round(self, proposed: int, kept: bool, steps: int, branches: int) -> float:
        """Seconds of a round."""
        target = float(np.interp(proposed + 1, list(self.passes), list(self.passes.values())))
        step = float(np.interp(branches, list(self.steps), list(self.steps.values())))
        return max(target, (self.kept if kept else self.anew) + steps * step) + self.rest


@dataclass(frozen=True)
class Course:
    """What is expected of the rounds over a text.

    Attributes:
        rounds: passes of the target.
        seconds: of all of them.
        branched: drafted tokens of all branches. Those behind a wrong head are taken to be as many as behind the right.
        accepted: drafted tokens that become text.
    """

    rounds: float
    seconds: float
    branched: float
    accepted: float


def course_of(rows: Rows, draft_length: int, confidence: float | None, costs: OverlapCosts) -> Course:
    """Follow the rounds over one text, which ends with its last row.

    `draft_length` is as in `branching_generate`, `confidence` as in `Length`.
    """
    tokens = len(rows)
    begun = np.zeros((tokens + 1, 2))  # the chance that a round begins before each token: anew, with a kept branch
    begun[0, 0] = 1
    rounds = seconds = branched = accepted = 0.0
    for start in range(tokens):
        for kept in (False, True):
            chance = float(begun[start, int(kept)])
            if not chance:
                continue
            proposed = _proposed(rows, start, draft_length, confidence)[1] if kept else 0
            point = start + proposed
            steps = heads = 0
            if point + 1 < tokens:
                heads = int(rows.heads[point])
                steps = 1 + _proposed(rows, point + 1, draft_length, confidence)[0]
            rounds += chance
            seconds += chance * costs.round(proposed, kept, steps, max(1, heads))
            branched += chance * heads * steps
            for place in range(start, point):
                begun[place + 1, 0] += chance * (1 - rows.accepted[place])
                chance *= float(rows.accepted[place])
                accepted += chance
            survives = float(rows.kept[point]) if heads else 0.0
            accepted += chance * survives
            begun[point + 1] += chance * np.array([1 - survives, survives])
    return Course(rounds, seconds, branched, accepted)


def _proposed(rows: Rows, start: int, draft_length: int, confidence: float | None) -> tuple[int, int]:
    """Tokens of a continuation that begins at `start`, as drafted and as proposed."""
    # The last token of a response is never proposed: it is the target's own, or a head.
    longest = min(draft_length - 1, len(rows) - start - 1)
    sure = until_unsure(rows.confidence[start : start + longest + 1].tolist(), confidence)
    if rows.expected is None:
        return sure, sure
    return longest, {NONE: 0, SOME: sure, ALL: longest}[int(rows.expected[start])]


@torch.inference_mode()
def rows_of(
    target: Model,
    drafter: Model,
    document: Document,
    temperature: float,
    branches: int,
    network: LengthNetwork | None = None,
) -> Rows:
    """Rows of an answer that the target wrote at a temperature, from one pass of each model.

    `branches` is as in `branching_generate`, `network` as in `Length`.
    """
    q = Draft.of(target, drafter).response_logits(document)  # [response, vocab]
    text = torch.tensor(document.tokens, device=q.device)
    response = text[document.response_start :]
    sure = confidences(q)
    counts = np.array([branch_count(one, branches) for one in sure.tolist()])
    most = min(int(counts.max()), q.shape[-1])
    if temperature:
        p = Draft(target, target, ComponentMask()).response_logits(document)

        def rule(target: Tensor, draft: Tensor) -> Tensor:
            return torch.cat([expected_acceptance(target, draft)[:, None], _within(target, draft, most)], dim=1)

        both = by_token(p, q, temperature, rule)
        accepted, within = both[:, 0], both[:, 1:]
    else:
        accepted = likeliest_is(q, response)
        within = (q.topk(most).indices == response[:, None]).cumsum(dim=1)
    kept = within.double().cpu().numpy()[np.arange(len(counts)), counts.clip(max=most) - 1]
    expected = None
    if network is not None:
        # Of a continuation that begins at a token, the newest token is the one before; none begins at the first one.
        places = torch.arange(document.response_start, len(text), device=text.device) - 1
        expected = network.expects(states_in(target, text, places.clamp(min=1)).to(network.mean.device)).cpu().numpy()
    return Rows(accepted.double().cpu().numpy(), sure.double().cpu().numpy(), counts, kept, expected)


def _within(target: Tensor, draft: Tensor, most: int) -> Tensor:
    """[tokens, most], the target's probability of the drafter's likeliest 1, 2, ... tokens; both are log p."""
    return target.gather(1, draft.topk(most).indices).exp().cumsum(dim=1).clamp(max=1.0)
