"""A run that promises: the trade-off, the budget that it allows, and what is said where nothing does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tiny
from radistill.cli.commands import app
from radistill.conversion import convert
from radistill.data.records import DataSplits
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import evaluate
from radistill.evaluation.results import figures_of
from radistill.files import read_json, write_json
from radistill.models.loading import Model, load
from radistill.pipeline import outcome, promise, stages, tasks
from radistill.pipeline.run import run
from radistill.report.page import write_report
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

STAGES = ["data", "tradeoff", "diagnose", "convert"]
RETRIEVAL = {"contexts": [200, 300], "calibration": 2, "heldout": 3, "train": 1}


def write_recipe(folder: Path, **diagnose: Any) -> Path:
    settings = {"budget": "auto", "by": "redundancy", "keep": {"kl": 1}, **diagnose}
    path = small_recipe(
        folder,
        {"source": "data"},
        diagnose=settings,
        align=None,
        distill=None,
        convert={"init": "zero"},
        evaluate={"max_new_tokens": 4},
    )
    recipe = yaml.safe_load(path.read_text())
    recipe["data"]["retrieval"] = RETRIEVAL
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a run without a promise, whose trade-off tells what can be promised."""
    folder = tmp_path_factory.mktemp("promise")
    tiny.save("llama", folder / "model", layers=5)
    recipe = write_recipe(folder, budget=2, keep=None, tradeoff=True, objective={"kl": 1, "retrieval": 0.1})
    run(load_recipe(recipe), folder / "out", STAGES)
    return folder


def points(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(out / "tradeoff.json")["points"]
    return found


def test_the_figures_are_those_of_the_hybrids(folder: Path) -> None:
    out = folder / "out"
    found = points(out)
    assert [point["budget"] for point in found] == [0, 1, 2, 3, 4]
    plan = read_json(out / "plan.json")
    assert plan["selector"]["kind"] == "greedy"  # a number of layers is chosen as ever
    assert plan["objective"]["name"] == "kl + 0.1 retrieval"
    base, documents = load(str(folder / "model")), DataSplits.load(out / "data").documents("heldout")
    for point in found:
        student = convert(base, point["layers"], init="zero")  # which puts out zero: the attention is skipped
        again = evaluate(student, base, documents).to_json()
        assert point["kl"] == pytest.approx(again["kl"], rel=1e-4, abs=1e-9)
        assert point["cache_bytes"]["4096"] == 4096 * again["kv_bytes_per_token"] + again["ssm_state_bytes"]


def test_a_promise_decides_the_budget(folder: Path) -> None:
    found, out = points(folder / "out"), folder / "auto"
    limit = found[3]["kl_interval"][1] * 1.001
    most = max(point["budget"] for point in found if point["kl_interval"][1] <= limit)
    recipe = write_recipe(folder, keep={"kl": limit}, objective={"kl": 1, "retrieval": 0.1})
    run(load_recipe(recipe), out, STAGES)
    assert read_json(out / "tradeoff.json")["budget"] == most
    assert points(out) == found
    plan = read_json(out / "plan.json")
    assert plan["replace"] == found[most]["layers"]
    assert plan["selector"]["kind"] == "curve"
    steps = read_json(out / "run.json")["stages"]
    run(load_recipe(recipe), out, STAGES)
    assert read_json(out / "run.json")["stages"] == steps  # nothing was done again
    page = (run(load_recipe(recipe), out, ["report"]) / "report.html").read_text()
    assert f"Promised: KL at most {limit:g}; kept by a budget of {most}: KL " in page
    assert 'id="tradeoff-kl-wide-title"' in page


@pytest.mark.slow
def test_a_report_has_no_trade_off_of_an_earlier_recipe(folder: Path) -> None:
    out, stages = folder / "changed", [*STAGES, "report"]
    run(load_recipe(write_recipe(folder)), out, stages)
    page = out / "report.html"
    assert "Promised: KL at most 1; kept by a budget of" in page.read_text()
    number = write_recipe(folder, budget=2, keep=None)
    run(load_recipe(number), out, stages)
    assert "The best layers of each number, held out." in page.read_text()
    assert "Promised" not in page.read_text()
    run(load_recipe(number, ["seed=3"]), out, stages)
    assert "Trade-off" not in page.read_text()
    run(load_recipe(number, ["seed=3", "diagnose.tradeoff=true"]), out, stages)
    assert "The best layers of each number, held out." in page.read_text()


def test_a_promise_that_nothing_keeps_ends_with_the_trade_off(folder: Path) -> None:
    out = folder / "never"
    recipe = write_recipe(folder, keep={"kl": 1e-9})
    with pytest.raises(RadistillError, match=r"tradeoff\.json: no budget keeps what diagnose\.keep promises; choose"):
        run(load_recipe(recipe), out, STAGES)
    assert read_json(out / "tradeoff.json")["budget"] is None
    assert not (out / "plan.json").exists()


def test_recall_that_the_model_itself_does_not_have_cannot_be_promised(folder: Path) -> None:
    with pytest.raises(RadistillError, match=r"which cannot be shown: the model itself finds 0 of 6 numbers; raise"):
        run(load_recipe(write_recipe(folder, keep={"recall": 0.3})), folder / "none", STAGES)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [({"budget": 9}, "budget is 9, which no point has"), ({"keep": {"kl": 1, "speed": 2}}, r"keep\.speed")],
)
def test_a_report_refuses_an_edited_trade_off(folder: Path, edit: dict[str, Any], complaint: str) -> None:
    path = folder / "out" / "tradeoff.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | edit))
    with pytest.raises(RadistillError, match=rf"tradeoff\.json: {complaint}.*`radistill tradeoff` makes it anew"):
        write_report(folder / "out")
    path.write_text(whole)


def test_the_command_prints_a_table_and_leaves_the_rest(folder: Path) -> None:
    out = folder / "out"
    before = {name: (out / name).read_bytes() for name in ("plan.json", "tradeoff.json")}
    done = CliRunner().invoke(app, ["tradeoff", str(out)], env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    assert "the best layers of each number, held out" in done.output
    rows = [line.split() for line in done.output.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert before == {name: (out / name).read_bytes() for name in before}


@pytest.mark.parametrize(
    ("limit", "tried", "budget"),
    [
        pytest.param(-0.5, [4], 4, marks=pytest.mark.slow),
        pytest.param(-0.25, [4, 2, 3], 2, marks=pytest.mark.slow),
        (-0.31, [4, 2, 3], 3),
    ],
)
def test_a_promise_of_tasks_takes_the_most_layers_whose_trained_hybrid_keeps_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, tried: list[int], budget: int
) -> None:
    """Each layer that goes costs a tenth of the answers here, and the largest hybrid is tried first."""
    built: list[int] = []

    def answered(model: Model, asked: Any, settings: Any, folder: Path, **arguments: Any) -> dict[str, Any]:
        right = 20 - 2 * len(model.anatomy.ssm_layers)
        rows = [{"key": str(number), "correct": number < right} for number in range(20)]
        figures = figures_of(rows) | {"settings": {}}
        write_json(folder / "tasks.json", {"model": model.source, "tasks": {"recall-needle": figures}})
        (folder / "recall-needle.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"recall-needle": figures}

    def converted(base: Model, replace: list[int], **settings: Any) -> Model:
        built.append(len(replace))
        return convert(base, replace, **settings)

    monkeypatch.setattr(tasks, "run_tasks", answered)
    monkeypatch.setattr(stages, "convert", converted)
    monkeypatch.setattr(outcome, "convert", converted)
    recipe = write_recipe(folder, keep={"kl": 99, "tasks": {"recall-needle": limit}})
    settings = load_recipe(recipe, ["evaluate.tasks=[recall-needle]", "evaluate.contexts=[128]", "evaluate.limit=1"])
    out = tmp_path / "out"
    everything = [*STAGES, "distill", "finetune", "evaluate", "report"]
    run(settings, out, everything)
    found = read_json(out / "promise.json")
    assert [one["budget"] for one in found["candidates"]] == tried
    assert [one["is_kept"] for one in found["candidates"]] == [size <= budget for size in tried]
    assert found["budget"] == budget
    assert all(one["tasks"]["recall-needle"]["difference"] == -one["budget"] / 10 for one in found["candidates"])
    plan = read_json(out / "plan.json")
    assert plan["replace"] == points(out)[budget]["layers"]
    assert built == [*tried, budget]  # the last is the evaluation's draft: the hybrid itself is the one that was tried
    assert list(load(out / "student").anatomy.ssm_layers) == plan["replace"]
    assert not list((out / "arms").glob("*"))
    page = (out / "report.html").read_text()
    assert f"recall-needle at most {-100 * limit:.1f} points lower" in page
    steps = read_json(out / "run.json")["stages"]
    run(settings, out, everything)
    assert read_json(out / "run.json")["stages"].keys() == steps.keys()
    assert built == [*tried, budget]
    # Who asks for a number of layers gets that, and no word of the promise.
    run(load_recipe(recipe, ["diagnose.budget=1", "diagnose.keep=null", "diagnose.selector=greedy"]), out, everything)
    assert "points lower" not in (out / "report.html").read_text()


def test_a_promise_of_tasks_that_nothing_keeps(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"budget": 1, "layers": [0], "tasks": {}, "is_kept": False}
    monkeypatch.setattr(stages, "_trained", lambda context, arm: None)
    monkeypatch.setattr(promise, "_asked", lambda context, arm, limits: lost | {"budget": arm.budget})
    recipe = write_recipe(folder, keep={"tasks": {"recall-needle": -0.1}})
    settings = load_recipe(recipe, ["evaluate.tasks=[recall-needle]", "evaluate.contexts=[128]"])
    with pytest.raises(RadistillError, match=r"promise\.json: no budget keeps what diagnose\.keep promises; .* longer"):
        run(settings, tmp_path / "out", STAGES)
    assert [one["budget"] for one in read_json(tmp_path / "out" / "promise.json")["candidates"]] == [4, 2, 1]


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        ("[recall]", r"diagnose\.keep\.tasks: gsm8k is not among evaluate\.tasks; add it there"),
        ("[gsm8k, perplexity]", r"diagnose\.keep\.tasks: perplexity has no right answers that could be counted"),
    ],
)
def test_tasks_that_cannot_be_promised_are_refused_before_any_work(
    folder: Path, tmp_path: Path, tasks: str, complaint: str
) -> None:
    recipe = write_recipe(folder, keep={"tasks": {"gsm8k": -0.1, "perplexity": -0.1}})
    with pytest.raises(RadistillError, match=complaint):
        run(load_recipe(recipe, [f"evaluate.tasks={tasks}"]), tmp_path / "out", STAGES)


@pytest.mark.slow
def test_other_texts_make_another_trade_off(folder: Path) -> None:
    recipe = load_recipe(folder / "out" / "recipe.yaml", ["data.retrieval.heldout=2"])
    run(recipe, folder / "other", STAGES[:2])
    assert read_json(folder / "other" / "tradeoff.json")["retrieval_texts"] == 4
    assert json.loads((folder / "other" / "run.json").read_text())["stages"].keys() == {"data", "tradeoff"}
