"""What the benchmark of engines keeps of an earlier call."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("engines")


def pair(machine: str, speeds: dict[int, float], dtype: str = "q8_0") -> dict[str, Any]:
    rows = [
        {"context": context, "base": {"decode_tokens_per_second": 1.0}, "hybrid": {"decode_tokens_per_second": speed}}
        for context, speed in speeds.items()
    ]
    return {"fingerprints": {"base": "a"}, "dtype": dtype, "engine": "one", "machine": machine, "contexts": rows}


def test_contexts_that_were_not_measured_again_stay_with_their_machine(engines: Any) -> None:
    earlier = pair("old", {512: 0.5, 2048: 0.7})
    whole = engines.with_earlier(pair("new", {2048: 0.9, 8192: 1.5}), earlier)
    assert [(row["context"], row["machine"]) for row in whole["contexts"]] == [
        (512, "old"), (2048, "new"), (8192, "new"),
    ]  # fmt: skip
    assert whole["contexts"][1]["hybrid"]["decode_tokens_per_second"] == 0.9
    assert whole["crossover"].endswith("at 2,048 tokens, and faster from 8,192 on.")
    third = engines.with_earlier(pair("newer", {512: 0.6}), whole)
    assert [row["machine"] for row in third["contexts"]] == ["newer", "new", "new"]


def test_figures_of_other_models_do_not_stay(engines: Any) -> None:
    found = pair("new", {512: 0.5})
    for earlier in (None, pair("old", {2048: 0.5}, dtype="f16")):
        assert [row["context"] for row in engines.with_earlier(found, earlier)["contexts"]] == [512]
