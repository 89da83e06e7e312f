"""Acceptance of a draft's tokens, read off teacher-forced passes instead of decoding.

With greedy decoding the target accepts a drafted token exactly when it is the target's own next token. On the target's
own continuation every accepted prefix is a prefix of that continuation, so one teacher-forced pass of the draft tells
at every position whether its token would have been accepted, and from that follows every round of draft-and-verify for
every draft length (arXiv 2309.08168, 2211.17192).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

DRAFT_LENGTHS = (1, 2, 4, 8)


def greedy_agreement(draft_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Where the draft's most likely token is the target's.

    Args:
        draft_logits: [tokens, vocab].
        target_logits: [tokens, vocab].

    Returns:
        [tokens], bool. A position where either side has a NaN does not agree.
    """
    return likeliest_is(draft_logits, target_logits.argmax(dim=-1)) & ~target_logits.isnan().any(dim=-1)


def likeliest_is(logits: Tensor, tokens: Tensor) -> Tensor:
    """Where the most likely token is the given one; of equally likely ones, the first.

    Args:
        logits: [tokens, vocab].
        tokens: [tokens], long.

    Returns:
        [tokens], bool; False where there is a NaN.
    """
    top = logits.max(dim=-1)  # NaN if any of them is
    return (top.indices == tokens) & ~top.values.isnan()


def confidences(logits: Tensor) -> Tensor:
    """The largest probability of each distribution, [...], of logits [..., vocab] as they are: at temperature 1."""
    return logits.float().softmax(dim=-1).amax(dim=-1)


def rounds_of(agreement: Sequence[bool], draft_length: int, unsure: Sequence[bool] | None = None) -> list[int]:
    """Accepted tokens in each round of greedy draft-and-verify over one response.

    In a round the draft proposes up to `draft_length` tokens; those before the first disagreement are accepted, and the
    target adds one token of its own.

    Args:
        agreement: for each response token, whether the draft would have produced it.
        draft_length: tokens drafted in a round, at least 1.
        unsure: for each response token, whether the draft's confidence there ends its proposal with this token.

    Returns:
        The number of accepted tokens of each round, in order.
    """
    if draft_length < 1:
        raise ValueError(f"draft_length is {draft_length}, but at least one token must be drafted")
    accepted: list[int] = []
    position = 0
    while position < len(agreement):
        run = 0
        while run < draft_length and position + run < len(agreement) and agreement[position + run]:
            run += 1
            if unsure is not None and unsure[position + run - 1]:
                break
        accepted.append(run)
        position += run + 1
    return accepted


def expected_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Probability that speculative sampling accepts a token of the draft: sum_v min(p_v, q_v) (arXiv 2211.17192).

    Args:
        target: log p, [tokens, vocab], the target's log-probabilities, after temperature and top-p.
        draft: log q, [tokens, vocab], the draft's at the same places.

    Returns:
        [tokens], from 0 to 1; 0 where either side has a NaN, because such a draft proposes nothing.
    """
    common = torch.minimum(target, draft).exp().sum(dim=-1).nan_to_num(nan=0.0)
    # A sum of floats misses 1 by a little, and a twin is always accepted.
    return common.masked_fill((target == draft).all(dim=-1), 1.0).clamp(max=1.0)


def likeliest_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Probability that a target which samples accepts the draft's likeliest token: p(argmax q).

    vLLM and llama.cpp draft greedily whatever the temperature; q is then 1 for that token, and min(1, p / q) is p.

    Args:
        target: log p, [tokens, vocab], the target's log-probabilities, after temperature and top-p.
        draft: the draft's at the same places, or its logits.

    Returns:
        [tokens], from 0 to 1; 0 where either side has a NaN.
    """
    top = draft.max(dim=-1)  # NaN if any of them is
    accepted = target.gather(-1, top.indices[:, None]).squeeze(-1).exp()
    return accepted.masked_fill(top.values.isnan(), 0.0).nan_to_num(nan=0.0)


def mean_accepted_length(agreements: Iterable[Tensor], draft_length: int) -> float:
    """Accepted tokens a round, averaged over all rounds of all responses, with an agreement [tokens] (bool) each.

    Returns:
        A number from 0 to `draft_length`; 0.0 where there are no rounds.
    """
    rounds = [accepted for agreement in agreements for accepted in rounds_of(agreement.tolist(), draft_length)]
    return sum(rounds) / len(rounds) if rounds else 0.0


def acceptance_rate(agreements: Iterable[Tensor]) -> float:
    """Share of all response tokens at which the draft agrees with the target; 0.0 where there are no tokens."""
    joined = [agreement for agreement in agreements if agreement.numel()]
    return torch.cat(joined).double().mean().item() if joined else 0.0
