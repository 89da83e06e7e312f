"""The rule of a branch point: which tokens the drafter goes on with, and which of them the target keeps.

While the target reads what was drafted before the branch point, the drafter cannot know the token there. It goes on
with its likeliest ones, the *heads*. The target then draws the token x from its own distribution p, as plain decoding
does; a branch is kept if its head is x. So x is distributed as p whatever the heads are. The published rule (arXiv
2506.01979) accepts a head by p / q, which is exact only for heads that were drawn from q, and top-k heads are not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from radistill.speculation.acceptance import confidences
from radistill.speculation.sampling import Proposal, Rule


class Verdict(NamedTuple):
    """What a round brought.

    Attributes:
        accepted: proposed tokens that the target accepts.
        following: the token that it writes after them.
        branch: index of the branch that is kept; None where all are dropped.
    """

    accepted: int
    following: int
    branch: int | None


def branch_count(confidence: float, most: int) -> int:
    """Branches at a place where the drafter's largest probability is `confidence`: max(1, floor(most (1 - q)))."""
    return max(1, math.floor(most * (1 - confidence)))


def heads_of(logits: Tensor, most: int, count: int | None = None) -> list[int]:
    """The drafter's likeliest tokens at a branch point.

    Args:
        logits: [vocab], of the drafter there.
        most: branches at least confidence; 0 for none.
        count: so many branches, whatever the confidence.

    Returns:
        The heads, likeliest first; none where a logit is NaN.
    """
    confidence = confidences(logits).item()
    if most < 1 or math.isnan(confidence):
        return []
    found: list[int] = logits.topk(min(count or branch_count(confidence, most), len(logits))).indices.tolist()
    return found


def judge(rule: Rule, proposal: Proposal, logits: Tensor, heads: Sequence[int]) -> Verdict:
    """Judge the tokens before a branch point, and what was drafted after it.

    Proposed tokens are accepted as ever (arXiv 2211.17192); where all are, `rule` draws the following token from p.

    Args:
        rule: greedy, or sampling.
        proposal: the tokens before the branch point, a batch of one; it may be empty.
        logits: of the target before and after each of them, [1, proposed + 1, vocab].
        heads: first token of each branch.
    """
    judgement = rule.judge(proposal, logits)
    accepted, following = int(judgement.accepted), int(judgement.following)
    kept = accepted == proposal.counts[0] and following in heads
    return Verdict(accepted, following, heads.index(following) if kept else None)
