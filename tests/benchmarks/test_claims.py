"""The harness of the paper's claims: its parts, and a whole run of it on a tiny model."""

import json
import subprocess
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import tiny
from radistill.evaluation.tasks.cruxeval import judge_input, judge_output
from radistill.files import read_json
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

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


def test_tokens_to_the_quality_of_the_baseline(module: Any) -> None:
    ratio = module("claims").token_ratio

    def arm(*kls: float) -> dict[str, Any]:
        points = [{"tokens": 10 * number, "kl": kl} for number, kl in enumerate(kls)]
        return {"tokens": points[-1]["tokens"], "evaluations": points}

    baseline = arm(9.0, 4.0, 3.0)
    assert ratio(baseline, baseline) == 1
    assert ratio(arm(5.0, 3.0, 1.0), baseline) == 0.5
    assert ratio(arm(2.0, 2.0, 2.0), baseline) == 0
    assert ratio(arm(5.0, 4.0, 3.5), baseline) is None


def test_a_difference_of_kls_is_over_the_same_documents(module: Any) -> None:
    claims = module("claims")
    one, other = [(3.0, 2), (5.0, 2)], [(4.0, 2), (8.0, 2)]
    assert claims.less(one, other)["difference"] == pytest.approx(8 / 4 - 12 / 4)
    seeds = [{"arms": {"hybrid": {"kl": kl}}} for kl in (1.0, 2.0, 4.5)]
    assert claims.over_seeds(seeds) == {"hybrid": [1.0, 2.5, 4.5]}


@pytest.mark.parametrize("name", ["claims", "claims-cpu", "convergence"])
def test_the_recipes_of_the_harness_are_valid(name: str) -> None:
    recipe = load_recipe(BENCHMARKS / "recipes" / f"{name}.yaml")
    assert "uniform-transfer" in recipe.arms
    assert {arm.target.groups for arm in recipe.hybrids} == {"heads"}


def test_prompts_are_made_where_there_are_none(module: Any, tmp_path: Path) -> None:
    data = tmp_path / "gsm8k"
    data.mkdir()
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(8)]
    (data / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for source, problems in ((None, 0), (tmp_path, 3)):
        module("claims").write_prompts(tmp_path / "prompts.jsonl", 6, source, 0)
        prompts = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
        assert len(prompts) == len(set(prompts)) == 6
        assert sum(prompt.startswith("What is") for prompt in prompts) == problems


@pytest.mark.slow
def test_a_run_of_the_harness(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    training = {"steps": 4, "tokens_per_batch": 200, "eval_steps": 2, "keep": "last", "save_seconds": 0}
    recipe = small_recipe(
        tmp_path,
        {"source": "data"},
        diagnose={"budget": 2, "by": "redundancy", "selector": "uniform"},
        convert={"target": {"kind": "granite-hybrid", "groups": "heads"}},
        align={"steps": 4},
        distill={**training, "rate_search": {"rates": [1e-3, 1e-2], "share": 0.5, "further": 0}},
        arms={"uniform-transfer": {"init": "transfer", "align": None, "rate": [1e-3, 1e-2]}},
        evaluate={"exact_match": False},
    )
    command = [sys.executable, BENCHMARKS / "claims.py", recipe, "--folder", tmp_path, "--out", tmp_path / "out.json"]
    for name in ("gsm8k/dev.jsonl", "gsm8k/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"question": "1 and 1?", "answer": "#### 2"}\n')
    asked = ["--tasks", "gsm8k", "--data", tmp_path, "--max-new-tokens", "4"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out.json")["seeds"]["0"]
    for arm in found["arms"].values():
        assert arm["interval"][0] <= arm["kl"] <= arm["interval"][1]
        assert arm["kl"] == pytest.approx(arm["evaluations"][-1]["kl"], rel=1e-3)
        assert str(arm["rates"]["best"]) in {str(float(rate)) for rate in arm["rates"]["kl"]}
    assert found["arms"]["uniform-transfer"]["token_ratio"] == 1
    assert found["arms"]["hybrid"]["unexplained"].keys() == {"0", "2"}
    assert list(found["tasks"]["figures"]) == ["base", "hybrid", "uniform-transfer"]
    drawing = ElementTree.fromstring((tmp_path / "out.svg").read_text())
    assert sum(element.tag.endswith("path") for element in drawing) == 2
