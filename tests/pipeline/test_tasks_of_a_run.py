"""Tasks that a recipe asks of base and hybrid when the run is evaluated: figures, rows, report and last lines."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from fake_server import Fake, serving, vllm_stands_in
from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.models.loading import load
from radistill.pipeline.preflight import check
from radistill.pipeline.run import run
from radistill.report.terminal import print_evaluation
from radistill.runs.contents import read_content
from radistill.runs.recipe import load_recipe
from radistill.statistics import wilson
from small_recipe import small_recipe

EVALUATE = {
    "exact_match": False,
    "tasks": ["recall-needle"],
    "contexts": [256, 384],
    "limit": 3,
    "samples": 1,
    "max_new_tokens": 4,
}


def recipe(folder: Path, **evaluate: Any) -> Path:
    tiny.save("llama", folder / "model", layers=3)
    return small_recipe(
        folder,
        {"source": "data"},
        diagnose={"budget": 1, "by": "redundancy", "selector": "uniform"},
        align={"steps": 1},
        distill={"steps": 1},
        arms={"copied": {"init": "transfer", "align": None, "target": {"kind": "granite-hybrid", "groups": "heads"}}},
        evaluate=EVALUATE | evaluate,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return run(load_recipe(recipe(folder)), folder / "out")


def test_base_and_hybrid_have_figures_with_intervals_that_their_rows_give(finished: Path) -> None:
    evaluation = read_json(finished / "evaluation.json")
    for name in ("base", "hybrid"):
        figures = evaluation[name]["tasks"]["recall-needle"]
        rows = [json.loads(line) for line in (finished / f"tasks/{name}/recall-needle.jsonl").read_text().splitlines()]
        right = sum(row["correct"] for row in rows)
        assert len(rows) == figures["n"] == 6
        assert figures["interval"] == pytest.approx(list(wilson(right, 6)))
        assert list(figures["groups"]) == ["needle 256", "needle 384"]
        assert [group["n"] for group in figures["groups"].values()] == [3, 3]
    assert evaluation["copied"]["tasks"] == evaluation["draft"]["tasks"] == {}
    assert not (finished / "tasks/copied").exists()


def test_the_last_lines_and_the_report_tell_the_trade(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = read_content(finished / "evaluation.json")
    for name, right in (("base", 6), ("hybrid", 4)):
        evaluation[name]["tasks"]["recall-needle"] |= {"accuracy": right / 6, "interval": list(wilson(right, 6))}
    print_evaluation(evaluation)
    text = " ".join(capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").split())
    kl = evaluation["hybrid"]["kl"]
    assert re.search(
        r"The trade: 33 % less KV cache; KL to the base [\d.e⁻·×10]+ nats a token; "
        r"recall-needle 66.7 % \(30–90\), base 100.0 % \(61–100\)\.$",
        text,
    ), (kl, text)
    assert "needle 256" in text
    page = (finished / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    top = page[: page.index("<nav")]
    assert "a third less KV cache. On 4 held-out documents its KL to the base is" in top
    assert re.search(r"recall-needle \d+\.\d % \(\d+\.\d–\d+\.\d\), base \d+\.\d %", top)
    assert "was not measured" not in top


def test_servers_answer_the_same(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM those of base and hybrid, one after the other, and an address those of the base alone; nothing else anew."""
    started, recipe = vllm_stands_in(monkeypatch), finished.parent / "recipe.yaml"
    with serving(Fake(load(finished.parent / "model"))) as fake:
        for server in ("vllm", fake.address):
            out = Path(shutil.copytree(finished, tmp_path / server.partition(":")[0]))
            run(load_recipe(recipe, [f"evaluate.server={server}"]), out)
            for name in ("base", "hybrid"):
                rows = f"tasks/{name}/recall-needle.jsonl"
                assert (out / rows).read_bytes() == (finished / rows).read_bytes()
            assert read_json(out / "evaluation.json") == read_json(finished / "evaluation.json")
        assert fake.texts == 6
    assert [(Path(one.names[0]).name, one.texts, one.address) for one in started] == [
        ("model", 6, ""), ("student", 6, ""),
    ]  # fmt: skip
    summaries = [read_json(out / f"tasks/{name}/tasks.json") for name in ("base", "hybrid")]
    assert [summary.get("server_model") for summary in summaries] == ["tiny", None]
    stages, before = (read_json(folder / "run.json")["stages"] for folder in (out, finished))
    assert {stage for stage in stages if stages[stage] != before[stage]} == {"evaluate"}


@pytest.mark.slow
def test_a_student_that_is_made_anew_is_asked_anew(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    out = run(load_recipe(path), tmp_path / "out")
    first = {name: read_json(out / f"tasks/{name}/tasks.json")["fingerprint"] for name in ("base", "hybrid")}
    run(load_recipe(path, ["distill.steps=2", "distill.new_block_learning_rate=0.1"]), out)
    second = {name: read_json(out / f"tasks/{name}/tasks.json")["fingerprint"] for name in ("base", "hybrid")}
    assert second["base"] == first["base"]
    assert second["hybrid"] != first["hybrid"]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"tasks": ["recal"], "contexts": None}, r"evaluate.tasks: no task 'recal'; did you mean recall\?"),
        ({"tasks": ["recall", "recall"]}, "evaluate.tasks: recall is named twice"),
        ({"tasks": ["gsm8k"]}, "evaluate.tasks: contexts is for the task recall"),
        ({"tasks": []}, "evaluate.limit is for evaluate.tasks, which names no task"),
        ({"tasks": ["perplexity"], "contexts": None, "server": "http://h"}, "evaluate.server is for tasks that let a"),
        ({"server": "vllm"}, "evaluate.server: vLLM: /nowhere has none; install it there, or name the Python of"),
        ({"contexts": [4096]}, "evaluate.contexts: 4096 tokens and an answer are beyond the 512 tokens of this model"),
    ],
)
def test_what_could_not_be_asked_is_refused_at_once(
    tmp_path: Path, evaluate: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADISTILL_VLLM", "/nowhere")
    settings = load_recipe(recipe(tmp_path, **evaluate))
    with pytest.raises(RadistillError, match=message):
        check(settings)
    with pytest.raises(RadistillError, match=message):
        run(settings, tmp_path / "out")
    assert not (tmp_path / "out/data").exists()
