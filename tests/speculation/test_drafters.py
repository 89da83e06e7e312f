"""Another model as the drafter: the target's own text, predicted rounds, padded vocabularies, and what is refused."""

from typing import Any

import pytest
import torch
from test_decode import assert_lossless, naive_rounds, prompts_of, student
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from radistill.errors import RadistillError
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.decode import speculative_generate
from radistill.speculation.drafting import Drafting
from radistill.speculation.prediction import predict_rounds
from radistill.speculation.sampling import Proposal

PADDED = tiny.VOCAB_SIZE + 60


def pairs() -> dict[str, tuple[Model, Model]]:
    """Target and drafter, by what is special about them; each pair agrees at some places and not at others."""
    llama, hybrid, padded = tiny.model("llama"), student(), tiny.cousin(tiny.model("llama"), 0, PADDED)
    return {
        "plain": (llama, tiny.cousin(llama)),
        "hybrid drafter": (llama, hybrid),
        "hybrid target": (hybrid, llama),
        "both hybrids": (hybrid, tiny.cousin(hybrid)),
        "delta": (tiny.model("qwen3_5_text"), tiny.cousin(tiny.model("qwen3_5_text"))),
        "mamba-1": (tiny.model("jamba"), tiny.cousin(tiny.model("jamba"))),
        "larger vocabulary": (llama, tiny.cousin(llama, 0.1, PADDED)),
        "smaller vocabulary": (padded, tiny.cousin(llama)),
    }


PAIRS = pairs()


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    return PAIRS[request.param]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_text_is_the_targets_own(pair: tuple[Model, Model], batch_size: int) -> None:
    target, drafter = pair
    prompts = prompts_of(2 * batch_size + 1, seed=3)
    expected = generate(target, prompts, max_new_tokens=9)
    for draft_length in (1, 4):
        decoded = speculative_generate(
            target, prompts, drafter, draft_length=draft_length, max_new_tokens=9, batch_size=batch_size
        )
        assert_lossless(target, prompts, expected, decoded)
        assert 0 < decoded.accepted < decoded.drafted


@pytest.mark.parametrize("confidence", [pytest.param(None, marks=pytest.mark.slow), 0.1])
def test_rounds_of_50_prompts_are_those_of_the_prediction(pair: tuple[Model, Model], confidence: float | None) -> None:
    target, drafter = pair
    prompts = prompts_of(50, longest=16, seed=2)
    decoded = speculative_generate(
        target, prompts, drafter, draft_length=3, max_new_tokens=8, batch_size=25, confidence=confidence
    )
    for prompt, response, accepted in zip(prompts, decoded.responses, decoded.accepted_by_round, strict=True):
        document = Document("", (*prompt, *response), len(prompt))
        assert predict_rounds(target, document, drafter, [3], confidence=confidence)[3] == accepted
    for prompt, response, accepted in list(zip(prompts, decoded.responses, decoded.accepted_by_round, strict=True))[:2]:
        assert (response, accepted) == naive_rounds(target, drafter, prompt, 3, 8, confidence)


@pytest.mark.parametrize("family", ["llama", "student", "falcon_h1"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_accepts_all_that_its_twin_drafts(family: str, temperature: float) -> None:
    model, twin = (student() if family == "student" else tiny.model(family) for _ in range(2))
    decoded = speculative_generate(
        model,
        prompts_of(12),
        twin,
        draft_length=4,
        max_new_tokens=10,
        temperature=temperature,
        top_p=0.9,
        batch_size=5,
    )
    assert decoded.acceptance_rate == 1.0
    assert decoded.drafted > 12 * 4


def test_a_sampled_response_does_not_depend_on_the_batch(pair: tuple[Model, Model]) -> None:
    target, drafter = pair
    prompts = prompts_of(4)

    def respond(batch_size: int) -> list[list[int]]:
        return speculative_generate(
            target, prompts, drafter, draft_length=3, max_new_tokens=6, temperature=1.0, batch_size=batch_size
        ).responses

    assert respond(1) == respond(4)


def proposals_of(monkeypatch: pytest.MonkeyPatch, target: Model, drafter: Model, **settings: Any) -> list[Proposal]:
    found: list[Proposal] = []
    propose = Drafting.propose

    def noted(self: Drafting, *args: Any) -> Proposal:
        found.append(propose(self, *args))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Drafting, "propose", noted)
        speculative_generate(
            target, prompts_of(20), drafter, draft_length=3, max_new_tokens=8, batch_size=10, **settings
        )
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_tokens_that_only_the_drafter_has_are_never_proposed(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    target, drafter = PAIRS["larger vocabulary"]
    # As a target, the drafter writes such tokens.
    free = generate(drafter, prompts_of(20), max_new_tokens=8, temperature=temperature)
    assert max(map(max, free)) >= tiny.VOCAB_SIZE
    for proposal in proposals_of(monkeypatch, target, drafter, temperature=temperature):
        assert proposal.tokens.max() < tiny.VOCAB_SIZE
        if proposal.probabilities is not None:
            assert proposal.probabilities.shape[2] == tiny.VOCAB_SIZE
            torch.testing.assert_close(proposal.probabilities.sum(dim=2), torch.ones_like(proposal.tokens).double())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_target_may_write_and_be_asked_tokens_that_the_drafter_does_not_have(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    target, drafter = PAIRS["smaller vocabulary"]
    for proposal in proposals_of(monkeypatch, target, drafter, temperature=temperature):
        assert proposal.tokens.max() < tiny.VOCAB_SIZE
    prompts = [[5, PADDED - 1, 7], [PADDED - 2, 9, 11, 13]]
    expected = generate(target, prompts, max_new_tokens=30)
    assert max(map(max, expected)) >= tiny.VOCAB_SIZE
    decoded = speculative_generate(target, prompts, drafter, draft_length=3, max_new_tokens=30, batch_size=2)
    assert_lossless(target, prompts, expected, decoded)


def test_both_networks_are_given_back_as_they_were() -> None:
    target, drafter = tiny.model("llama"), tiny.model("qwen2")
    drafter.network.train()
    speculative_generate(target, [[5]], drafter, draft_length=2, max_new_tokens=4)
    assert drafter.network.training
    assert not target.network.training
    assert all("forward" not in vars(module) for module in drafter.network.modules())


def test_a_drafter_without_numbers_leaves_the_work_to_the_target() -> None:
    target, drafter = tiny.model("llama"), tiny.model("llama")
    drafter.network.lm_head.weight.data[7, 0] = float("nan")
    decoded = speculative_generate(target, prompts_of(4), drafter, draft_length=3, max_new_tokens=5, batch_size=4)
    assert decoded.drafted == 0
    assert decoded.responses == generate(target, prompts_of(4), max_new_tokens=5)


def other_tokenizer() -> PreTrainedTokenizerFast:
    """Two tokens have swapped ids."""
    text = tiny.tokenizer().backend_tokenizer.to_str()
    swapped = text.replace('"A":32,', '"A":33,').replace('"B":33,', '"B":32,')
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped), pad_token=tiny.PAD)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "draft_length is 0, but it starts at 1"),
        ({"draft_cache": "shared"}, "another model cannot read the target's cache; let it be separate"),
        ({"prompts": [[5] * 64]}, "prompt 0 has 64 tokens, but the context of tiny qwen2 is 64"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], message: str) -> None:
    drafter = tiny.model("qwen2", max_position_embeddings=64)
    arguments: dict[str, object] = {"prompts": [[5]], "drafter": drafter, "draft_length": 2, "max_new_tokens": 4}
    with pytest.raises(RadistillError, match=message):
        speculative_generate(tiny.model("llama"), **arguments | settings)  # type: ignore[arg-type]


def test_another_tokenizer_is_refused() -> None:
    target, drafter = tiny.model("llama"), tiny.model("qwen2")
    drafter.tokenizer = other_tokenizer()
    message = "drafter tiny qwen2 has another tokenizer than the target: token 32 is 'B' in the drafter and 'A' in the"
    with pytest.raises(RadistillError, match=message):
        speculative_generate(target, [[5]], drafter, draft_length=2, max_new_tokens=4)
    with pytest.raises(RadistillError, match=message):
        predict_rounds(target, Document("", (5, 6), 1), drafter, [2])
