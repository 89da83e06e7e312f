"""Savings by llama.cpp: a base and its hybrid as GGUF files of one type, in turns."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import small

from radistill.cli import main
from radistill.conversion import convert
from radistill.evaluation.savings.measure import Room, SavingsSettings, measure_savings
from radistill.export.engines.llama_cpp import LlamaCpp, LlamaCppEngine, with_cache_bytes
from radistill.export.gguf import write_gguf

SETTINGS = SavingsSettings((64, 128), decode_tokens=4, repeats=2, draft_length=None)


def test_both_are_measured_at_every_context(tmp_path: Path) -> None:
    base = small.model("llama", hidden_size=64)
    hybrid = convert(base, [0, 2], init="random")
    found = measure_savings(base, hybrid, SETTINGS, tmp_path / "s.json", LlamaCppEngine("q8_0", tmp_path))
    assert found["engine"].startswith("llama.cpp by xllamacpp 20")
    assert found["dtype"] == "q8_0"
    assert [row["context"] for row in found["contexts"]] == [64, 128]
    for row in found["contexts"]:
        for name in ("base", "hybrid"):
            assert min(row[name][key] for key in ("first_token_seconds", "decode_tokens_per_second")) > 0
        assert 0 < row["hybrid"]["cache_bytes"] < row["base"]["cache_bytes"]
    assert len(list(tmp_path.glob("*.gguf"))) == 2  # each written once
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_contexts_beyond_the_models_own_are_read(tmp_path: Path) -> None:
    """llama.cpp's server refuses a text that is longer than the file says that the model reads."""
    base = small.model("llama", hidden_size=64)
    hybrid = convert(base, [0, 2], init="random")
    assert base.context_length is not None
    contexts = (64, base.context_length + 100)
    settings = SavingsSettings(contexts, decode_tokens=4, repeats=1, draft_length=None, beyond_context=True)
    found = measure_savings(base, hybrid, settings, tmp_path / "s.json", LlamaCppEngine("q8_0", tmp_path))
    assert [row["context"] for row in found["contexts"]] == list(contexts)


def test_the_cache_is_llama_cpps_own_account(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small.save(tmp_path / "model", "llama")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    # It makes room for a multiple of 256 tokens, in float16.
    number = model.anatomy.kv_bytes_per_token(2)
    assert with_cache_bytes(tmp_path / "m.gguf", 500)[1] == pytest.approx(512 * number, abs=2**20 / 100)
    assert with_cache_bytes(tmp_path / "m.gguf", 1000)[1] == pytest.approx(1024 * number, abs=2**20 / 100)
    LlamaCpp(tmp_path / "m.gguf").greedy([5, 6], 2)
    assert capfd.readouterr().err.count("\n") <= 1  # the bar of the export, and nothing of llama.cpp's


def test_several_sequences_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model("llama")
    answers: list[dict[str, Any]] = []
    all_three = threading.Barrier(3, timeout=60)  # raises where they come one after the other
    greedy = LlamaCpp.greedy

    def noted(self: LlamaCpp, *given: Any, **settings: Any) -> dict[str, Any]:
        all_three.wait()
        answers.append(greedy(self, *given, **settings))
        return answers[-1]

    with LlamaCppEngine("float32", tmp_path).reading(model, Room(64, 20, 64), 3) as read:
        monkeypatch.setattr(LlamaCpp, "greedy", noted)
        began = time.perf_counter()
        found = read([5] * 64)
        took = time.perf_counter() - began
    assert [len(answer["tokens"]) for answer in answers] == [1] * 3 + [21] * 3
    # The context is read twice: for the first token alone, and before all of them.
    assert 0 < 2 * found.prefill_seconds + 20 * found.step_seconds[0] < took
    one = model.anatomy.kv_bytes_per_token(2) * 256
    assert found.cache_bytes == pytest.approx(3 * one, abs=2**20 / 100)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = small.save(tmp_path / "base", "llama")
    convert(base, [0, 2], init="random").save(tmp_path / "hybrid")
    command = ["savings", str(tmp_path / "base"), str(tmp_path / "hybrid"), "--out", str(tmp_path / "s.json")]
    command += ["--contexts", "64", "--decode-tokens", "2", "--repeats", "1", "--engine"]
    monkeypatch.setattr(sys, "argv", ["radistill", *command, "llama.cpp"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert "llama.cpp by xllamacpp" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    monkeypatch.setattr(sys, "argv", ["radistill", *command, "sglang"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "--engine is 'sglang'; it can be transformers, llama.cpp or vllm" in capsys.readouterr().err


def test_the_first_token_takes_no_time_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp counts it, but its clock starts after it."""
    model = small.save(tmp_path / "model", "llama")
    timings: list[dict[str, float]] = []
    greedy = LlamaCpp.greedy

    def noted(self: LlamaCpp, *given: Any, **settings: Any) -> dict[str, Any]:
        answer = greedy(self, *given, **settings)
        timings.append(answer["timings"])
        return answer

    monkeypatch.setattr(LlamaCpp, "greedy", noted)
    with LlamaCppEngine("float32", tmp_path).reading(model, Room(16, 4, 16), 1) as read:
        found = read([5] * 16)
    assert timings[-1]["predicted_n"] == 5
    assert found.step_seconds == pytest.approx([timings[-1]["predicted_ms"] / 1000 / 4] * 4)
