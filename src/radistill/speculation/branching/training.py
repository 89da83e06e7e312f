"""Train H-RAD on rounds of the target's own answers, and compare it on held-out ones with confidence alone.

Nothing is decoded. One pass of the target over an answer has the hidden states of every round that could begin in it,
and one pass of the drafter tells what the target would have accepted there, greedily.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.models.generation import evaluating, seeded
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.acceptance import confidences, likeliest_is
from radistill.speculation.branching.length import ALL, NONE, SOME, LengthNetwork, states_in, until_unsure
from radistill.speculation.drafters import Draft
from radistill.statistics import Difference, paired_bootstrap

EPOCHS = 20
BATCH = 32
RATE = 1e-3
_HELD_OUT = 4  # every fourth answer


@dataclass(frozen=True)
class Beginnings:
    """The rounds that could begin in one answer, one after each token that has a whole continuation behind it.

    Attributes:
        states: [rounds, inputs], what the network sees.
        cases: [rounds], what the target accepts of the continuation: `NONE`, `SOME` or `ALL`.
        by_confidence: [rounds], what confidence alone expects.
    """

    states: Tensor
    cases: Tensor
    by_confidence: Tensor


@dataclass(frozen=True)
class LengthFigures:
    """What became of a network for the length of drafts, on held-out rounds.

    Attributes:
        trained: rounds that it was trained on.
        held_out: rounds that it was measured on.
        right: share of these whose case it expects.
        right_by_confidence: share whose case confidence alone expects.
        right_by_habit: share of the case that is most frequent in training.
        difference: of the first less the second, paired by answer.
    """

    trained: int
    held_out: int
    right: float
    right_by_confidence: float
    right_by_habit: float
    difference: Difference

    @property
    def verdict(self) -> str:
        """In one line whether it is better than confidence alone."""
        low, high = self.difference.interval
        word = "better" if low > 0 else "worse" if high < 0 else "no better, by this measure,"
        return (
            f"{word} than confidence alone: on {self.held_out:,} held-out rounds it expects {self.right:.1%} rightly, "
            f"confidence {self.right_by_confidence:.1%}, the most frequent case {self.right_by_habit:.1%}; "
            f"difference {self.difference.difference:+.1%} (95 % interval {low:+.1%} to {high:+.1%})"
        )


def train_length(
    target: Model,
    drafter: Model,
    documents: Sequence[Document],
    *,
    draft_length: int,
    confidence: float | None,
    seed: int = 0,
) -> tuple[LengthNetwork, LengthFigures]:
    """Train on three of four answers, and measure on the fourth.

    Args:
        target, drafter: the pair.
        documents: prompts with the target's own greedy answers.
        draft_length: as in `branching_generate`, at least 2.
        confidence: with which confidence alone is compared.
        seed: of weights, order and dropout.

    Raises:
        RadistillError: if a draft has no continuation, or there are too few answers that are long enough.
    """
    if draft_length < 2:
        raise RadistillError(f"train-length: draft length {draft_length} leaves nothing to decide; it starts at 2")
    with progress("rounds", len(documents), "answers") as advance, evaluating(target.network, drafter.network):
        found = []
        for document in documents:
            if document.response_tokens >= draft_length:
                found.append(beginnings_of(target, drafter, document, draft_length, confidence))
            advance()
    held_out = found[_HELD_OUT - 1 :: _HELD_OUT]
    training = [one for number, one in enumerate(found, start=1) if number % _HELD_OUT]
    if len(held_out) < 2:
        raise RadistillError(
            f"train-length: {len(found)} answers have {draft_length} tokens or more, but it takes {2 * _HELD_OUT}, two "
            "of them to measure on; raise --count or --max-new-tokens"
        )
    network = fit(training, seed)
    return network, _compare(network, training, held_out)


@torch.inference_mode()
def beginnings_of(
    target: Model, drafter: Model, document: Document, draft_length: int, confidence: float | None
) -> Beginnings:
    """The rounds that could begin in an answer of at least `draft_length` tokens."""
    longest = draft_length - 1
    logits = Draft.of(target, drafter).response_logits(document)  # [response, vocab]
    text = torch.tensor(document.tokens, device=target.network.device)
    agreement = likeliest_is(logits, text[document.response_start :])
    # A round begins with the newest token; its continuation are the tokens behind that.
    runs = agreement[1:].unfold(0, longest, 1).long().cumprod(dim=1).sum(dim=1)
    sure = confidences(logits)[1:].unfold(0, longest, 1).tolist()
    places = torch.arange(document.response_start, len(text) - longest, device=text.device)
    seen = states_in(target, text, places)
    expected = torch.tensor([until_unsure([*one, 0.0], confidence) for one in sure])
    return Beginnings(seen.cpu(), cases(runs.cpu(), longest), cases(expected, longest))


def cases(counts: Tensor, longest: int) -> Tensor:
    """`NONE`, `SOME` or `ALL`, for accepted tokens of continuations of `longest`."""
    return torch.where(counts == longest, ALL, torch.where(counts == 0, NONE, SOME))


def fit(training: Sequence[Beginnings], seed: int) -> LengthNetwork:
    """Train a network: cross entropy, Adam, `EPOCHS` times through all rounds in batches of `BATCH`."""
    states = torch.cat([one.states for one in training])
    wanted = torch.cat([one.cases for one in training])
    with seeded(states.device, seed):
        network = LengthNetwork(states.shape[1])
        network.mean.copy_(states.mean(dim=0))
        network.scale.copy_(states.std(dim=0).clamp(min=1e-6))
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        with progress("training", EPOCHS, "epochs") as advance:
            for _ in range(EPOCHS):
                for chosen in torch.randperm(len(states)).split(BATCH):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(network(states[chosen]), wanted[chosen]).backward()
                    optimizer.step()
                advance()
    return network.eval()


def _compare(network: LengthNetwork, training: Sequence[Beginnings], held_out: Sequence[Beginnings]) -> LengthFigures:
    habit = torch.cat([one.cases for one in training]).bincount(minlength=3).argmax()
    rounds = [len(one.cases) for one in held_out]
    right = [int((network.expects(one.states) == one.cases).sum()) for one in held_out]
    by_confidence = [int((one.by_confidence == one.cases).sum()) for one in held_out]
    return LengthFigures(
        trained=sum(len(one.cases) for one in training),
        held_out=sum(rounds),
        right=sum(right) / sum(rounds),
        right_by_confidence=sum(by_confidence) / sum(rounds),
        right_by_habit=sum(int((one.cases == habit).sum()) for one in held_out) / sum(rounds),
        difference=paired_bootstrap(by_confidence, right, rounds),
    )
