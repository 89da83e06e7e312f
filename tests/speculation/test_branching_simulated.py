"""The simulator: against the course of every single case, against decoding, and its timings."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from test_drafters import PAIRS
from test_measure import answered, naive

from radistill.models.generation import generate
from radistill.speculation.branching import measure as measuring
from radistill.speculation.branching.length import ALL, NONE, SOME, Length, LengthNetwork
from radistill.speculation.branching.loop import branching_generate
from radistill.speculation.branching.measure import measure_overlap, time_overlap
from radistill.speculation.branching.rule import branch_count
from radistill.speculation.branching.simulate import OverlapCosts, Rows, course_of, rows_of
from radistill.speculation.measure import SAMPLED
from same_process import SameProcess, draft_here

COSTS = OverlapCosts({1: 2.0, 2: 2.3, 4: 2.9, 8: 4.1, 16: 6.5}, 1.1, 0.25, {1: 1.0, 2: 1.5, 3: 2.0}, 0.4)

ACCEPTED = np.array([0.0, 0.0, 0.0, 1.0])


def every_course(
    rows: Rows, draft_length: int, confidence: float | None, start: int = 0, kept: bool = False
) -> np.ndarray:
    """Expected rounds, seconds, drafted and accepted tokens from here on: each case of the round, one after another."""
    tokens = len(rows)
    if start == tokens:
        return np.zeros(4)

    def continuation(first: int) -> tuple[int, int]:
        drafted = proposed = 0
        expected = SOME if rows.expected is None else rows.expected[first]
        sure = True
        while drafted < draft_length - 1 and first + drafted < tokens - 1:
            sure = sure and (confidence is None or rows.confidence[first + drafted] >= confidence)
            if rows.expected is None and not sure:
                break
            drafted += 1
            proposed += expected == ALL or (expected == SOME and sure)
        return drafted, proposed

    proposed = continuation(start)[1] if kept else 0
    point = start + proposed
    heads = int(rows.heads[point]) if point < tokens - 1 else 0
    steps = 1 + continuation(point + 1)[0] if heads else 0
    target = {1: 2.0, 2: 2.3, 3: 2.6, 4: 2.9}[proposed + 1]
    drafting = (0.25 if kept else 1.1) + steps * (1.0 + 0.5 * (max(1, heads) - 1))
    found = np.array([1, max(target, drafting) + 0.4, heads * steps, 0])
    chance = 1.0
    for place in range(start, point):
        here = chance * (1 - rows.accepted[place])
        found += here * (every_course(rows, draft_length, confidence, place + 1) + (place - start) * ACCEPTED)
        chance *= rows.accepted[place]
    survives = rows.kept[point] if heads else 0.0
    for case, here in ((True, survives), (False, 1 - survives)):
        if here:
            rest = every_course(rows, draft_length, confidence, point + 1, case)
            found += chance * here * (rest + (proposed + case) * ACCEPTED)
    return found


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("with_network", [True, False])
def test_the_course_is_that_of_every_single_case(certain: bool, with_network: bool) -> None:
    rng = random.Random(3)
    for tokens in (1, 2, 3, 7):
        for draft_length in (1, 2, 4):
            for confidence in (None, 0.5):
                chances = [[rng.random() for _ in range(tokens)] for _ in range(3)]
                accepted, sure, kept = (np.array(one) for one in chances)
                if certain:
                    accepted, kept = accepted.round(), kept.round()
                rows = Rows(
                    accepted,
                    sure,
                    np.array([branch_count(one, 3) for one in sure]),
                    np.maximum(kept, accepted),
                    np.array([rng.choice((NONE, SOME, ALL)) for _ in range(tokens)]) if with_network else None,
                )
                found = course_of(rows, draft_length, confidence, COSTS)
                expected = every_course(rows, draft_length, confidence)
                np.testing.assert_allclose(
                    [found.rounds, found.seconds, found.branched, found.accepted], expected, rtol=1e-12
                )


@pytest.mark.parametrize(
    ("name", "confidence", "decides"),
    [
        ("plain", None, False),
        ("plain", 0.1, True),
        ("both hybrids", 0.1, False),
        pytest.param("both hybrids", None, True, marks=pytest.mark.slow),
    ],
)
def test_greedy_rounds_are_those_of_decoding(name: str, confidence: float | None, decides: bool) -> None:
    target, drafter = PAIRS[name]
    network = None
    if decides:
        torch.manual_seed(0)
        network = LengthNetwork(5 * target.anatomy.hidden_size).eval()
        network.layers[-1].weight.data *= 20
    prompts = [[5, 6, 7], [9]]
    responses = generate(target, prompts, max_new_tokens=16, description=None)
    decoded = branching_generate(
        target, prompts, SameProcess(drafter), draft_length=4, max_new_tokens=16, length=Length(confidence, network)
    )
    assert decoded.responses == responses
    for prompt, response, accepted in zip(prompts, responses, decoded.accepted_by_round, strict=True):
        document = measuring.Document("", (*prompt, *response), len(prompt))
        rows = rows_of(target, drafter, document, 0.0, 3, network)
        course = course_of(rows, 4, confidence, COSTS)
        assert (course.rounds, course.accepted) == (len(accepted), sum(accepted))


def test_rows_of_sampled_answers_are_those_of_the_definition() -> None:
    target, drafter = PAIRS["smaller vocabulary"]
    [document] = answered(target, 0.8, count=1, tokens=5)
    rows = rows_of(target, drafter, document, 0.8, 9)
    np.testing.assert_allclose(rows.accepted, naive(target, drafter, document, 0.8)[SAMPLED], rtol=1e-5)
    for number in range(len(rows)):
        text = list(document.tokens[: document.response_start + number])
        size = drafter.anatomy.vocab_size
        with torch.no_grad():
            p = (target.network(torch.tensor([text])).logits[0, -1].double() / 0.8).softmax(-1)
            known = [token if token < size else drafter.pad_token_id for token in text]
            q = drafter.network(torch.tensor([known])).logits[0, -1]
        heads = q.topk(branch_count(rows.confidence[number], 9)).indices
        assert len(heads) == rows.heads[number] > 1
        assert rows.confidence[number] == pytest.approx(q.softmax(-1).max().item(), rel=1e-5)
        assert rows.kept[number] == pytest.approx(p[heads].sum().item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_rounds_are_timed_and_lead_to_a_verdict(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "draft_process", draft_here)
    target, drafter = PAIRS["both hybrids"]
    costs = time_overlap(target, SameProcess(drafter), context=8, branches=3, temperature=temperature, repeats=1)
    assert list(costs.passes) == [1, 2, 4, 8, 16]
    assert set(costs.steps) <= {1, 2}
    assert min(*costs.passes.values(), *costs.steps.values(), costs.anew, costs.kept) > 0
    documents: Any = {temperature: answered(target, temperature, count=3)}

    def timed(**given: float) -> None:
        fixed = OverlapCosts({1: 1.0, 16: 1.0}, 0.01, 0.01, {1: given["step"]}, 0.0)
        monkeypatch.setattr(measuring, "time_overlap", lambda *_, **__: fixed)

    timed(step=0.001)
    [found] = measure_overlap(target, drafter, documents, {8: 1.0}, branches=3, confidence=None)
    assert found.speedup.value == max(found.by_length.values()) > 1
    assert found.verdict.startswith(("yes: 1.", "yes: 2.", "perhaps"))
    assert "takes 1000.0 steps in one of the target's" in found.verdict
    assert 0 < found.rollback_share < 1
    timed(step=3.0)
    [slow] = measure_overlap(target, drafter, documents, {8: 1.0}, branches=3, confidence=None)
    assert slow.verdict.startswith("no: at best 0.")
    assert slow.draft_length == 1
