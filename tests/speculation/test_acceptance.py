"""Acceptance read off teacher-forced agreement, against draft-and-verify played out token by token."""

import random

import pytest
import torch

from radistill.speculation.acceptance import acceptance_rate, greedy_agreement, mean_accepted_length, rounds_of


def play_out(agreement: list[bool], draft_length: int) -> list[int]:
    """Draft-and-verify as its authors describe it, one token at a time."""
    accepted_per_round = []
    written = 0
    while written < len(agreement):
        accepted = 0
        for drafted in range(draft_length):
            at = written + drafted
            if at >= len(agreement) or not agreement[at]:
                break
            accepted += 1
        accepted_per_round.append(accepted)
        written += accepted + 1  # the target's own token
    return accepted_per_round


@pytest.mark.parametrize("draft_length", [1, 2, 4, 8])
def test_rounds_equal_playing_it_out(draft_length: int) -> None:
    rng = random.Random(draft_length)
    for length in (0, 1, 2, 3, 7, 50):
        for share in (0.0, 0.5, 0.9, 1.0):
            agreement = [rng.random() < share for _ in range(length)]
            assert rounds_of(agreement, draft_length) == play_out(agreement, draft_length)


@pytest.mark.parametrize(
    ("agreement", "draft_length", "rounds"),
    [
        ([], 4, []),
        ([True], 4, [1]),
        ([False], 4, [0]),
        ([True] * 5, 4, [4]),
        ([True] * 6, 4, [4, 1]),
        ([True, False, True, True, False, True], 2, [1, 2, 1]),
        ([False, False, False], 1, [0, 0, 0]),
    ],
)
def test_rounds_by_hand(agreement: list[bool], draft_length: int, rounds: list[int]) -> None:
    assert rounds_of(agreement, draft_length) == rounds


def test_mean_accepted_length_averages_over_rounds_not_responses() -> None:
    long = torch.tensor([True] * 4 + [False])  # draft length 4: rounds 4
    short = torch.tensor([False, False])  # rounds 0, 0
    assert mean_accepted_length([long, short], 4) == pytest.approx(4 / 3)
    assert mean_accepted_length([], 4) == 0.0


def test_a_draft_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="draft_length is 0"):
        rounds_of([True], 0)


def test_agreement_is_by_the_likeliest_token_and_never_by_nan() -> None:
    target = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    draft = torch.tensor([[0.0, 9.0], [0.0, 1.0], [float("nan"), 1.0], [0.0, float("inf")]])
    assert greedy_agreement(draft, target).tolist() == [True, False, False, True]


def test_acceptance_rate_counts_tokens() -> None:
    assert acceptance_rate([torch.tensor([True, True, True]), torch.tensor([False])]) == 0.75
    assert acceptance_rate([]) == 0.0
    assert acceptance_rate([torch.zeros(0, dtype=torch.bool)]) == 0.0
