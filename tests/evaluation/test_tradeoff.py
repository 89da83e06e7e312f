"""The trade-off: figures against plain passes, caches against converted students, and what a promise chooses."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from diagnosis.test_curve import answered, finds
from diagnosis.test_diagnose import documents, naive
from radistill.conversion import convert
from radistill.conversion.targets import TARGETS, target_for
from radistill.diagnosis.objectives import objective_from
from radistill.diagnosis.selectors import Curve
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.evaluation.tradeoff import cache_bytes, kept, trade_off
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.report.tradeoff_table import promise, tradeoff_table
from radistill.runs.contents import TradeOff
from radistill.statistics import ratio_interval

KL = objective_from({"name": "kl"})


def other_documents() -> list[Document]:
    return [Document(f"other {one.id}", one.tokens[::-1], 3) for one in documents(5)]


def found_of(model: Model, folder: Path | None = None, retrieval: bool = True) -> dict[str, Any]:
    texts = answered(model) if retrieval else []
    trials = Trials(model, documents(), KL, retrieval=texts, folder=folder)
    return trade_off(trials, (other_documents(), texts), Curve(width=2), state_numbers=100, seed=0, folder=folder)


def test_every_size_is_measured_on_texts_that_the_search_has_not_seen() -> None:
    model = tiny.model("llama", layers=5)
    found, texts = found_of(model), answered(model)
    assert [point["budget"] for point in found["points"]] == [0, 1, 2, 3, 4]
    for point in found["points"]:
        assert len(point["layers"]) == point["budget"]
        agreements, kl, _ = naive(model, point["layers"], other_documents())
        assert point["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
        assert point["acceptance_rate"] == sum(map(sum, agreements)) / sum(map(len, agreements))
        low, high = point["kl_interval"]
        assert low <= point["kl"] <= high
        if point["budget"]:
            assert point["calibration"]["kl"] == pytest.approx(naive(model, point["layers"], documents())[1], rel=1e-3)
    base, *others = found["points"]
    assert (base["recall"], base["found"], base["of"]) == (1, 4, 4)  # of six texts, the model itself finds four
    assert all(point["of"] == 4 and point["recall"] == point["found"] / 4 for point in others)
    for point in found["points"]:
        right = [finds(model, point["layers"], text) for text in texts]
        both = sum(mine and finds(model, [], text) for mine, text in zip(right, texts, strict=True))
        assert (point["found"], point["both"]) == (sum(right), both)
        assert point["recall_interval"] == list(ratio_interval(both, 4 - both, sum(right) - both))
    assert len({point["recall"] for point in found["points"]}) > 1
    table = tradeoff_table(TradeOff.model_validate(found))
    assert table.row_count == 5


def test_without_retrieval_texts_there_is_no_recall() -> None:
    found = found_of(tiny.model("llama"), retrieval=False)
    assert not any("recall" in point for point in found["points"])


def test_a_draft_whose_logits_overflow_has_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trials.run

    def overflowing(self: Trials, layers: Any) -> Any:
        found = run(self, layers)
        return replace(found, nats=[math.nan] * len(found.nats)) if len(tuple(layers)) == 2 else found

    monkeypatch.setattr(Trials, "run", overflowing)
    found = TradeOff.model_validate(
        json.loads(json.dumps(found_of(tiny.model("llama", layers=5), tmp_path), allow_nan=False))
    )
    assert [point.budget for point in found.points] == [0, 1, 3, 4]


@pytest.mark.slow
def test_a_killed_trade_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama", layers=5)
    whole = found_of(model)
    run, passes = Trials.run, []

    def dying(self: Trials, layers: Any) -> Any:
        passes.append(layers)
        if len(passes) == 14:
            raise KeyboardInterrupt
        return run(self, layers)

    monkeypatch.setattr(Trials, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        found_of(model, tmp_path)
    first = len(passes)
    assert found_of(model, tmp_path) == whole
    again = len(passes)
    assert found_of(model, tmp_path) == whole
    assert len(passes) == again > first  # everything was known


@pytest.mark.parametrize("family", ["llama", "qwen3", "granitemoehybrid", "mistral"])
def test_caches_are_those_of_the_student(family: str) -> None:
    settings = {"sliding_window": 300, "max_position_embeddings": 200_000} if family == "mistral" else {}
    model = tiny.model(family, layers=6, **settings)
    config, attention = model.network.config, model.anatomy.attention_layers
    if family == "mistral":  # no target holds a window, so the student is its own
        told = cache_bytes(model.anatomy, [], 7)
        assert told == {str(tokens): model.anatomy.kv_bytes(tokens) for tokens in (4096, 32_768, 131_072)}
        assert len(set(told.values())) == 1
        return
    target = target_for(config, "tiny", None)
    replaced = list(attention[:2])
    student = convert(model, replaced, target=target, init="random").anatomy
    numbers = TARGETS[target.kind].geometry(config, target).state_numbers
    told = cache_bytes(model.anatomy, replaced, numbers)
    assert told == {str(n): student.kv_bytes(n) + student.ssm_state_bytes() for n in (4096, 32_768, 131_072)}


def test_a_model_of_one_attention_has_nothing_to_trade() -> None:
    with pytest.raises(RadistillError, match="has no two attention layers"):
        found_of(tiny.model("llama", layers=1))


POINTS = [
    {"budget": 0, "kl_interval": [0, 0], "recall_interval": [0.9, 1]},
    {"budget": 1, "kl_interval": [0.01, 0.02], "recall_interval": [0.9, 1]},
    {"budget": 2, "kl_interval": [0.01, 0.06], "recall_interval": [0.8, 0.9]},
    {"budget": 3, "kl_interval": [0.02, 0.04], "recall_interval": [0.7, 0.9]},
    {"budget": 4, "kl_interval": [0.1, 0.2]},
]


@pytest.mark.parametrize(
    ("keep", "budget"),
    [
        ({"kl": 0.02}, 1),
        ({"kl": 0.05}, 3),
        ({"kl": 0.2}, 4),
        ({"recall": 0.8}, 2),
        ({"kl": 0.05, "recall": 0.75}, 1),
        ({"kl": 0.001}, None),
        ({"recall": 0.95}, None),
    ],
)
def test_a_promise_holds_at_the_worse_end_of_the_interval(keep: dict[str, float], budget: int | None) -> None:
    point = kept(POINTS, keep)
    assert (point and point["budget"]) == budget


def test_the_terminal_says_what_was_promised() -> None:
    found = found_of(tiny.model("llama", layers=5)) | {"keep": {"kl": 0.5, "recall": 0.2}}
    assert promise(TradeOff.model_validate(found | {"budget": None})) == (
        "promised: KL at most 0.5 and recall at least 0.2; no budget keeps that"
    )
    said = promise(TradeOff.model_validate(json.loads(json.dumps(found | {"budget": 1}))))
    assert said.startswith("promised: KL at most 0.5 and recall at least 0.2; kept by a budget of 1: KL ")
    assert " numbers found, where the model finds 4, so recall of at least " in said
