"""A drafter measured: acceptance against a plain definition and against decoding, and what is refused."""

import itertools
import math

import pytest
import torch
from test_decode import prompts_of, student
from test_drafters import PADDED, PAIRS, other_tokenizer

import tiny
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.decode import speculative_generate
from radistill.speculation.drafters import Drafter
from radistill.speculation.masks import ComponentMask
from radistill.speculation.measure import (
    GREEDY,
    LIKELIEST,
    SAMPLED,
    acceptance_of,
    check_drafter,
    measure_drafter,
)
from radistill.speculation.payoff import rounds_over
from radistill.speculation.round_costs import time_rounds


def answered(target: Model, temperature: float, count: int = 4, tokens: int = 9) -> list[Document]:
    prompts = prompts_of(count, longest=12, seed=5)
    responses = generate(target, prompts, max_new_tokens=tokens, temperature=temperature, description=None)
    return [
        Document(str(index), (*prompt, *response), len(prompt))
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def naive(target: Model, drafter: Model, document: Document, temperature: float) -> dict[str, list[float]]:
    """By the definition, one token and one entry of the vocabulary at a time."""
    found: dict[str, list[float]] = {SAMPLED: [], LIKELIEST: []}
    size = target.anatomy.vocab_size
    for position in range(document.response_start, len(document.tokens)):
        chances = []
        for model in (target, drafter):
            own = model.anatomy.vocab_size
            text = [token if token < own else model.pad_token_id for token in document.tokens[:position]]
            with torch.inference_mode():
                logits = model.network(input_ids=torch.tensor([text])).logits[0, -1, :size].double().tolist()
            weights = [math.exp(logit / temperature) for logit in logits]
            chances.append([weight / sum(weights) for weight in weights] + [0.0] * (size - len(weights)))
        p, q = chances
        found[SAMPLED].append(sum(map(min, p, q)))
        found[LIKELIEST].append(p[q.index(max(q))])
    return found


@pytest.mark.parametrize("name", ["plain", "hybrid target", "larger vocabulary", "smaller vocabulary"])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_sampled_acceptance_is_its_definition(name: str, temperature: float) -> None:
    target, drafter = PAIRS[name]
    [document] = answered(target, temperature, count=1)
    found = acceptance_of(target, drafter, [document], temperature)
    expected = naive(target, drafter, document, temperature)
    assert found.keys() == expected.keys()
    for rule in found:
        assert found[rule][0] == pytest.approx(expected[rule], abs=1e-5)
        assert 0 < min(found[rule][0]) <= max(found[rule][0]) < 1


@pytest.mark.parametrize("name", ["plain", "hybrid drafter", "larger vocabulary"])
def test_greedy_rounds_are_those_that_are_decoded(name: str) -> None:
    target, drafter = PAIRS[name]
    documents = answered(target, 0.0, count=12)
    [tokens] = acceptance_of(target, drafter, documents, 0.0).values()
    for length in (1, 3):
        decoded = speculative_generate(
            target,
            [document.tokens[: document.response_start] for document in documents],
            drafter,
            draft_length=length,
            max_new_tokens=9,
            batch_size=12,
        )
        rounds = [rounds_over(text, length) for text in tokens]
        assert [int(one.number) for one in rounds] == list(map(len, decoded.accepted_by_round))
        assert [int(one.accepted.sum()) for one in rounds] == list(map(sum, decoded.accepted_by_round))


def test_sampled_rounds_are_those_that_are_decoded_on_average() -> None:
    """The expectation is over texts of plain sampling; decoding writes others, of the same distribution."""
    target, drafter = PAIRS["plain"]
    documents = answered(target, 1.0, count=100, tokens=6)
    tokens = acceptance_of(target, drafter, documents, 1.0)[SAMPLED]
    rounds = [rounds_over(text, 2) for text in tokens]
    decoded = speculative_generate(
        target,
        [document.tokens[: document.response_start] for document in documents],
        drafter,
        draft_length=2,
        max_new_tokens=6,
        temperature=1.0,
        batch_size=100,
    )
    expected = sum(one.accepted.sum() for one in rounds) / sum(one.number for one in rounds)
    # Some 250 rounds of 0 to 2 accepted tokens: a standard error of about 0.05.
    assert decoded.mean_accepted_length == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("family", ["llama", "student"])
def test_a_twin_is_accepted_always(family: str) -> None:
    target, twin = (student() if family == "student" else tiny.model(family) for _ in range(2))
    drafters: list[Drafter] = [twin, target, ComponentMask()]
    for drafter, temperature in itertools.product(drafters, (0.0, 0.7)):
        found = acceptance_of(target, drafter, answered(target, temperature), temperature)
        for text in found[SAMPLED if temperature else GREEDY]:
            assert set(text) == {1.0}


def shadows(model: Model) -> list[str]:
    return [name for name, module in model.network.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize(("batch_size", "sampled"), [(1, False), (3, True)])
def test_rounds_are_timed_and_the_models_left_alone(batch_size: int, sampled: bool) -> None:
    for target, drafter in (
        (tiny.model("llama"), student()),
        (student(), ComponentMask(frozenset({(0, Component.ATTENTION), (1, Component.SSM)}))),
    ):
        before = target.fingerprint, shadows(target)
        turns: list[None] = []
        costs = time_rounds(
            target,
            drafter,
            context=20,
            batch_size=batch_size,
            sampled=sampled,
            repeats=1,
            advance=lambda turns=turns: turns.append(None),  # type: ignore[misc]
        )
        assert len(turns) == 2
        assert (costs.context, costs.batch_size, list(costs.draft), list(costs.verify)) == (
            20,
            batch_size,
            [1, 2, 4, 8, 16],
            [2, 3, 5, 9, 17],
        )
        assert min(costs.plain, *costs.draft.values(), *costs.verify.values()) > 0
        assert (target.fingerprint, shadows(target)) == before


def test_every_figure_is_there() -> None:
    target, drafter = PAIRS["plain"]
    documents = {temperature: answered(target, temperature) for temperature in (0.0, 1.0)}
    figures = measure_drafter(target, drafter, documents, contexts=[8], repeats=1)
    assert [(one.temperature, one.rule) for one in figures.acceptances] == [
        (0.0, GREEDY),
        (1.0, SAMPLED),
        (1.0, LIKELIEST),
    ]
    assert [outcome.costs.context for outcome in figures.outcomes] == [8] * 3
    greedy, sampled, likeliest = (outcome.costs for outcome in figures.outcomes)
    assert (likeliest.draft, likeliest.verify, likeliest.plain) == (greedy.draft, sampled.verify, sampled.plain)
    for one in figures.acceptances:
        low, high = one.rate.interval
        assert 0 <= low <= one.rate.value <= high <= 1
        assert list(one.accepted) == list(range(1, 17))
        # Of a draft of one token, those accepted a round are its acceptance at the places where rounds begin.
        assert 0 <= one.accepted[1].value <= one.accepted[16].value
        assert all(0 <= estimate.value <= 1 for estimate in one.by_position)
    written = figures.to_json()
    assert written["outcomes"][0]["verdict"] == figures.outcomes[0].payoff.verdict
    assert "tokens" not in written["acceptances"][0]


def test_what_cannot_draft_is_refused() -> None:
    target = tiny.model("llama")
    with pytest.raises(
        RadistillError, match=r"drafter tiny llama has [\d,]+ weights, more than the [\d,]+ of the target"
    ):
        check_drafter(target, tiny.model("llama", layers=6))
    with pytest.raises(RadistillError, match="layer 9 does not exist"):
        check_drafter(target, ComponentMask.attention([9]))
    check_drafter(target, tiny.model("llama"))
    check_drafter(tiny.model("llama", layers=8), tiny.cousin(target, 0, PADDED))
    stranger = tiny.model("qwen2", layers=2)
    stranger.tokenizer = other_tokenizer()
    with pytest.raises(RadistillError, match="has another tokenizer than the target"):
        check_drafter(target, stranger)
    with pytest.raises(RadistillError, match="long has 65 tokens with its answer, but the context of tiny llama is 64"):
        acceptance_of(target, tiny.model("llama", max_position_embeddings=64), [Document("long", (5,) * 65, 1)], 0.0)
    with pytest.raises(RadistillError, match="no documents to measure on"):
        measure_drafter(target, ComponentMask(), {0.0: []})
    with pytest.raises(RadistillError, match="context is 600, but tiny llama takes from 2 to 512 tokens"):
        time_rounds(target, ComponentMask(), context=600)


def test_logits_that_are_no_numbers() -> None:
    target, drafter = tiny.model("llama"), tiny.model("llama")
    documents = answered(target, 1.0, count=1)
    drafter.network.lm_head.weight.data[7, 0] = float("nan")
    for temperature in (0.0, 1.0):
        for texts in acceptance_of(target, drafter, documents, temperature).values():
            assert set(texts[0]) == {0.0}
    with pytest.raises(RadistillError, match="the drafter's logits are NaN"):
        time_rounds(target, drafter, context=8, repeats=1)
    with pytest.raises(RadistillError, match="the model's logits are NaN"):
        acceptance_of(drafter, target, documents, 1.0)
