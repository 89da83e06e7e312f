"""The harness of the paper's claims: its parts, and a whole smoke run on the real SmolLM2."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import tiny
from radistill import convert
from radistill.evaluation.tasks.cruxeval import judge_input, judge_output
from radistill.models.loading import load
from radistill.models.sequences import Document

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module


def test_exercises_are_told_what_their_functions_return(module: Any) -> None:
    exercises = module("common.code_tracing").exercises
    found = list(islice(exercises(3), 60))
    assert len({example.verifier["code"] for example in found}) == 60
    assert [example.prompt for example in islice(exercises(3), 60)] == [example.prompt for example in found]
    assert {example.verifier["direction"] for example in found} == {"input", "output"}
    for example in found[:4]:
        call = f"<answer>f({example.verifier['input']})</answer>"
        assert judge_input(example, call).correct
        assert judge_output(example, f"<answer>{example.verifier['answer']}</answer>").correct
        assert not judge_output(example, "<answer>'nothing of the kind'</answer>").correct


def test_overlap_counts_texts_that_share_a_run_of_words(module: Any) -> None:
    overlap = module("common.overlap").overlap
    found = overlap(["One two three, four."], ["zero ONE two three", "two one three four", "a b"], 3)
    assert found == {"n": 3, "texts": 3, "shared": 1, "too_short": 1}


def test_pieces_make_the_same_file_or_none(module: Any, tmp_path: Path) -> None:
    pieces = module("common.pieces")
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(range(256)) * 10)
    parts = pieces.split(whole, tmp_path / "parts", size=1000)
    assert [part.stat().st_size for part in parts] == [1000, 1000, 560]
    pieces.join(tmp_path / "parts", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole.read_bytes()
    parts[1].write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"whole\.001: missing or damaged"):
        pieces.join(tmp_path / "parts", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_tokens_to_the_quality_of_the_baseline(module: Any) -> None:
    ratio = module("common.students").token_ratio

    def arm(*kls: float) -> dict[str, Any]:
        points = [{"tokens": 10 * number, "kl": kl} for number, kl in enumerate(kls)]
        return {"tokens": points[-1]["tokens"], "evaluations": points}

    baseline = arm(9.0, 4.0, 3.0)
    assert ratio(baseline, baseline) == 1
    assert ratio(arm(5.0, 3.0, 1.0), baseline) == 0.5
    assert ratio(arm(2.0, 2.0, 2.0), baseline) == 0
    assert ratio(arm(5.0, 4.0, 3.5), baseline) is None


def test_the_first_documents_that_have_so_many_tokens(module: Any) -> None:
    first = module("common.students").first_tokens
    documents = [Document("x", tuple(range(length)), 1) for length in (4, 3, 5)]
    assert [len(first(documents, tokens)) for tokens in (1, 4, 5, 7, 8, 12, 99)] == [1, 1, 2, 2, 3, 3, 3]
    assert first([], 5) == []


def test_a_kl_is_compared_with_that_of_the_same_teacher_and_budget_only(module: Any) -> None:
    claims = module("claims")

    def measured(arm: Any, *nats: float) -> tuple[str, dict[str, Any]]:
        points = [{"tokens": 10 * number, "kl": kl} for number, kl in enumerate([9.0, *nats])]
        curve = {"tokens": points[-1]["tokens"], "evaluations": points, "nats": [(kl * 4, 4) for kl in nats]}
        return arm.name, {"teacher": arm.teacher, "budget": arm.budget} | curve

    large, few = claims.CLAIM_C, claims.Arm("rad", "fitted", budget=6)
    arms = dict(
        [
            measured(claims.BASELINE, 4.0, 3.0),
            measured(claims.FITTED, 2.0, 1.0),
            measured(large[0], 1.0, 0.5),
            measured(large[1], 0.75, 0.25),
            measured(few, 0.5, 0.5),
        ]
    )
    found = claims.summary(arms)
    assert found["uniform+transfer"]["kl"] == 3.5
    assert found["rad+fitted"]["less_baseline"]["difference"] == -2
    assert found["rad+fitted@large"]["less_baseline"]["difference"] == -0.25
    assert found["rad+fitted@large"]["token_ratio"] == 1
    assert found[few.name]["token_ratio"] is None
    assert found[few.name]["less_baseline"] is None
    assert claims.kl_differences(arms) == {}
    worse = claims.kl_differences(arms | {"uniform+fitted": arms["uniform+transfer"]})
    assert list(worse) == ["uniform+fitted, rad+fitted"]
    assert worse["uniform+fitted, rad+fitted"]["difference"] == -2
    seeds = claims.over_seeds(
        [{"summary": found}, {"summary": found | {"rad+fitted": {"kl": 2.5, "token_ratio": 0.5}}}]
    )
    assert seeds["rad+fitted"] == {"kl": [1.5, 2.0, 2.5], "token_ratio": [0.5, 0.5, 0.5]}
    assert seeds[few.name]["token_ratio"] is None


def test_what_is_kept_of_a_teacher_can_teach(module: Any, tmp_path: Path) -> None:
    claims, students = module("claims"), module("common.students")
    teacher = load(tiny.save("llama", tmp_path / "model", layers=2))
    documents = [Document(str(number), tuple(range(4, 24 + number)), 8) for number in range(3)]
    splits = SimpleNamespace(documents=lambda name: documents)

    def taught(top_k: int | None) -> Any:
        study = claims.Study(teacher, None, None, replace(claims.CPU, top_k=top_k), tmp_path, math.inf)
        study._splits[0] = splits, {}
        return study.taught(teacher, 0)

    assert taught(None) is teacher
    kept = taught(5)
    assert kept.top_k == 5
    student = convert(teacher, [1], target=students.GEOMETRY, init="zero", seed=0)
    curve = students.train_blocks(
        student, kept, documents, documents,
        replace=[1], steps=2, tokens_per_batch=64,
        rate=1e-3, precision=None, measures=2, folder=tmp_path / "run", seed=0,
    )  # fmt: skip
    assert [point["kl"] > 0 for point in curve["evaluations"]] == [True] * 3


def test_the_figure_has_the_curves_of_claim_b_with_the_first_seed(module: Any) -> None:
    def arms(last: float) -> dict[str, Any]:
        points = [{"tokens": 0, "kl": 12.0}, {"tokens": 50, "kl": last}]
        names = ("uniform+transfer", "rad+zero", "rad+fitted@large")
        return {"arms": {name: {"evaluations": points} for name in names}}

    seeds = {"7": arms(0.25), "8": arms(0.5)}
    scale = {"budget": 12, "seeds": [7, 8]}
    drawn = module("claims").figure({"scale": scale, "attention_layers": 24, "seeds": seeds})
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "12 of 24 attention layers" in drawn
    assert [drawn.count(label) for label in ("uniform+transfer: 0.250", "rad+zero: 0.250", "0.500", "large")] == [
        1,
        1,
        0,
        0,
    ]


@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_smoke_run_goes_on_after_a_slice_and_measures_both_arms(tmp_path: Path) -> None:
    command = [
        sys.executable,
        BENCHMARKS / "claims.py",
        "--smoke",
        "--folder",
        tmp_path,
        "--out",
        tmp_path / "out.json",
    ]
    slice_ = subprocess.run([*command, "--minutes", "0.4"], capture_output=True, text=True)
    assert slice_.returncode == 75, slice_.stderr
    assert not (tmp_path / "out.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    found = result["seeds"]["0"]
    assert set(found["arms"]) == {"uniform+transfer", "rad+fitted"}
    for arm in found["arms"].values():
        assert len(arm["replace"]) == 10
        assert arm["evaluations"][-1]["kl"] > 0
        assert str(arm["rate"]) in {str(float(rate)) for rate in arm["rates"]}
        assert arm["tasks"]["cruxeval-o"]["n"] == 2
    assert (
        found["arms"]["rad+fitted"]["evaluations"][0]["kl"] < found["arms"]["uniform+transfer"]["evaluations"][0]["kl"]
    )
    baseline, fitted = found["summary"]["uniform+transfer"], found["summary"]["rad+fitted"]
    assert baseline["token_ratio"] == 1
    assert baseline["less_baseline"]["difference"] == 0
    assert fitted["kl"] == pytest.approx(found["arms"]["rad+fitted"]["evaluations"][-1]["kl"], rel=1e-3)
    assert fitted["interval"][0] <= fitted["kl"] <= fitted["interval"][1]
    assert fitted["less_baseline"]["difference"] == pytest.approx(fitted["kl"] - baseline["kl"])
    assert set(found["on_tasks"]) == {
        "base, uniform+transfer",
        "base, rad+fitted",
        "uniform+transfer, rad+fitted",
    }
    for lines in found["on_tasks"].values():
        assert [line["task"] for line in lines if not line["group"]] == ["cruxeval-o", "recall"]
    assert result["base"]["recall"]["n"] == 4
