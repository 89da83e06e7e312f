"""The evaluation of a model on held-out documents, and answers that are no answers."""

from typing import Any

import pytest

import tiny
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import evaluate
from radistill.models import generation
from radistill.models.loading import Model
from radistill.models.sequences import Document

ANSWERS = ["#### 7", "[" * 1200, "9" * 5000, "1e999999999", "#### 1/0", "\ud800", ""]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama", max_position_embeddings=8192)


def documents(count: int) -> list[Document]:
    return [Document(f"d{n}", (5, 6 + n, 7, 8), 2) for n in range(count)]


def test_hostile_answers_are_wrong_and_end_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said = dict(enumerate(ANSWERS))
    monkeypatch.setattr(model.tokenizer, "decode", lambda tokens, **_: said[tokens[0]])
    for expected in ("7", "seven", "[7]", "2/3"):
        verifiers = [{"kind": "answer", "answer": expected}] * len(ANSWERS)
        found = evaluate(
            model, model, documents(len(ANSWERS)), verifiers=verifiers, written=[[n] for n in range(len(ANSWERS))]
        )
        assert found.exact_match == pytest.approx((expected == "7") / len(ANSWERS))
        assert found.exact_match_n == len(ANSWERS)


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        ({"kind": "regex", "answer": "1"}, "kind is 'regex'"),
        ({}, "kind is None"),
        ({"kind": "answer"}, "has no answer"),
    ],
)
def test_a_verifier_that_cannot_judge_is_refused_before_anything_is_generated(
    verifier: dict[str, Any], message: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_run", None)
    monkeypatch.setattr(model.network, "forward", None)
    with pytest.raises(RadistillError, match=message):
        evaluate(model, model, documents(2), verifiers=[{"kind": "answer", "answer": "1"}, verifier])
