"""`radistill drafter` in this process, on tiny models."""

import json
import sys
from pathlib import Path

import pytest

import tiny
from radistill.cli import main
from radistill.models.loading import load
from radistill.speculation import measure as measuring
from radistill.speculation.branching import measure as overlapping
from radistill.speculation.branching.length import load_length
from radistill.speculation.round_costs import time_rounds
from same_process import draft_here

QUICK = ["--data", "prompts.jsonl", "--count", "2", "--max-new-tokens", "6", "--context", "16", "--threads", "1"]
SHORT = {"repeats": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save("llama", tmp_path / "target")
    tiny.save("llama", tmp_path / "small", layers=2)
    # Answers that the data brings are not the target's own.
    rows = [{"prompt": f"What is {n} + {n}?", "response": "Nothing."} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def measure(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", "drafter", "measure", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(str(leaving.value.code))


@pytest.mark.parametrize(("drafter", "temperatures"), [(["small"], (0.0, 0.6)), (["--skip", "1,2"], (0.0,))])
def test_figures_and_a_verdict(
    drafter: list[str],
    temperatures: tuple[float, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(measuring, "time_rounds", lambda *given, **settings: time_rounds(*given, **settings | SHORT))
    arguments = ["target", *drafter, *QUICK, "--out", "found.json", "--batch-size", "2"]
    arguments += ["--temperature", ",".join(map(str, temperatures))]
    assert measure(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads((folder / "found.json").read_text())
    assert found["drafter"] == ("small" if drafter == ["small"] else "attention:1-2")
    assert found["settings"]["seed"] == 0
    assert found["machine"]["threads"] == 1
    assert "torch" in found["versions"]
    rules = [(0.0, "greedy"), (0.6, "sampled"), (0.6, "likeliest")][: 2 * len(temperatures) - 1]
    assert [(one["temperature"], one["rule"]) for one in found["outcomes"]] == rules
    assert {one["costs"]["batch_size"] for one in found["outcomes"]} == {2}
    assert max(map(len, printed.splitlines())) <= 80
    for outcome in found["outcomes"]:
        assert outcome["verdict"].split(":")[0] in ("yes", "no", "perhaps")
        assert outcome["verdict"] in printed.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "target"], "drafter target has 53,792 weights, more than the 35,232 of the target small"),
        (["target"], "say what drafts, with DRAFT or with --skip"),
        (["target", "small", "--skip", "1"], "say what drafts, with DRAFT or with --skip"),
        (["target", "nowhere"], "nowhere"),
        (["target", "--skip", "9"], "layer 9 does not exist"),
        (["target", "small", "--temperature", "0,-1"], "--temperature '0,-1': must be different numbers of at least 0"),
        (["target", "small", "--context", "many"], "--context 'many': must be different numbers of tokens"),
        (["target", "small", "--context", "600"], "context is 600, but"),
        (["target", "small", "--temperature", "1e-45"], "temperature is 1e-45; it is 0"),
        (["target", "--skip", "1", "--branches", "2"], "--branches needs DRAFT"),
        (["target", "small", "--batch-size", "2", "--branches", "2"], "put 1 among --batch-size"),
        (["target", "small", "--batch-size", "0"], "--batch-size '0': must be different whole numbers"),
        (["target", "small", "--data", "none.jsonl"], "none.jsonl"),
        (["target", "small", "--out", "target"], "target: is a folder; name a file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measure(monkeypatch, *QUICK, "--out", "found.json", *arguments) == 2
    said = capsys.readouterr().err
    assert "teacher writes" not in said  # a minute or an hour of answers
    [*_, last] = said.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert not (folder / "found.json").exists()


def test_overlapping_is_measured_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "time_rounds", lambda *given, **settings: time_rounds(*given, **settings | SHORT))
    monkeypatch.setattr(overlapping, "draft_process", draft_here)
    monkeypatch.setattr(overlapping, "REPEATS", 1)
    arguments = ["target", "small", *QUICK, "--out", "found.json", "--temperature", "0", "--branches", "2"]
    assert measure(monkeypatch, *arguments) == 0
    [found] = json.loads((folder / "found.json").read_text())["overlaps"]
    assert (found["temperature"], found["context"], found["branches"]) == (0.0, 16, 2)
    assert set(found["by_length"]) == {str(length) for length in range(1, 17)}
    printed = " ".join(capsys.readouterr().out.split())
    assert f"context 16, temperature 0, 2 branches meanwhile: {found['verdict']}" in printed


def test_a_network_for_the_length_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"What is {n} + {n}?"} for n in range(8)]
    (folder / "eight.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["target", "small", "--data", "eight.jsonl", "--count", "8", "--max-new-tokens", "8", "--out", "h.st"]
    monkeypatch.setattr(sys, "argv", ["radistill", "drafter", "train-length", *arguments, "--draft-length", "3"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code in (None, 0)
    assert load_length(folder / "h.st", load("target"), load("small"), 3)
    *_, wrote, verdict = capsys.readouterr().err.strip().splitlines()
    assert wrote.startswith(f"{folder / 'h.st'}: trained on ")
    assert "than confidence alone: on " in verdict
