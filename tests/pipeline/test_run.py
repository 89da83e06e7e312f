"""Whole runs on a tiny model: what they leave, what they repeat, and what a kill costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from radistill.data.records import DataSplits
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import evaluate
from radistill.files import read_json
from radistill.models.loading import load
from radistill.pipeline.run import run
from radistill.pipeline.stages import STAGES
from radistill.runs.read import read_run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

UNIFORM = {
    "selector": "uniform",
    "by": "redundancy",
    "target": {"kind": "granite-hybrid", "groups": "heads"},
    "init": "transfer",
    "align": None,
}
DATA = {"kind": "jsonl", "train": 10, "calibration": 3, "heldout": 4, "responses": {"source": "data"}}


def write_recipe(folder: Path, **changes: Any) -> Path:
    sections = {
        "diagnose": {"budget": 2, "by": "redundancy", "selector": {"kind": "bayes", "trials": 4, "startup": 3}},
        "align": {"steps": 6},
        "distill": {"steps": 8, "tokens_per_batch": 200, "eval_steps": 4, "save_seconds": 0},
        "finetune": {"steps": 4, "tokens_per_batch": 200, "eval_steps": 2, "save_seconds": 0},
        "arms": {"uniform": UNIFORM},
        "evaluate": {"max_new_tokens": 6},
    }
    return small_recipe(folder, {"source": "teacher", "max_new_tokens": 12}, **{**sections, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and the run `out` of it, done without interruption."""
    folder = tmp_path_factory.mktemp("run")
    tiny.save("llama", folder / "model")
    run(load_recipe(write_recipe(folder)), folder / "out")
    return folder


@pytest.mark.slow
def test_a_finished_run_is_told_of_without_the_classes_of_its_recipe(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They import torch, for which nobody who only reads files should wait."""
    out = finished / "out"
    recipe = load_recipe(out / "recipe.yaml")
    monkeypatch.setattr("radistill.runs.recipe.load_recipe", None)
    monkeypatch.setattr("radistill.conversion.targets.mixer_of", None)
    told = read_run(out)
    assert told.recipe is not None
    assert told.recipe.fields == recipe.model_dump(mode="json")
    assert told.recipe.text == (out / "recipe.yaml").read_text()
    assert told.block == "an SSM (Mamba-2)"
    assert [hybrid.name for hybrid in told.hybrids] == ["hybrid", "uniform"]


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    out = finished / "out"
    plan = read_json(out / "plan.json")
    assert len(plan["replace"]) == 2
    assert plan["replace"] == sorted(plan["replace"])
    assert read_json(out / "arms" / "uniform" / "plan.json")["replace"] == [0, 2]
    evaluation = read_json(out / "evaluation.json")
    for arm in ("base", "draft", "hybrid", "uniform", "hybrid_start", "uniform_start"):
        figures = evaluation[arm]
        assert {"kl", "agreement", "perplexity", "exact_match", "kv_bytes_per_token"} <= set(figures)
    assert evaluation["base"]["kl"] == 0
    assert evaluation["base"]["agreement"] == 1
    # The figures are those of the models that lie there.
    base, records = load(str(finished / "model")), DataSplits.load(out / "data").heldout
    documents = [record.document for record in records]
    for name, folder in (("hybrid", out / "student"), ("uniform", out / "arms" / "uniform" / "student")):
        again = evaluate(load(folder), base, documents).to_json()
        measured = ("kl", "agreement", "perplexity", "kv_bytes_per_token", "ssm_state_bytes")
        assert [evaluation[name][key] for key in measured] == pytest.approx([again[key] for key in measured], rel=1e-6)
    assert evaluation["hybrid"]["kl"] < evaluation["draft"]["kl"]
    # Two of four layers keep a KV cache of 2 heads x 8 numbers, for keys and values, of 2 bytes.
    assert evaluation["base"]["kv_bytes_per_token"] == 4 * 2 * 2 * 8 * 2
    assert evaluation["hybrid"]["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 2
    page = (out / "report.html").read_text()
    assert "<html" in page
    assert read_json(out / "run.json")["versions"]["torch"] == torch.__version__


def test_both_hybrids_are_trained_on_the_same_tokens(finished: Path) -> None:
    rad = read_json(finished / "out" / "distill.json")
    uniform = read_json(finished / "out" / "arms" / "uniform" / "distill.json")
    assert [point["tokens"] for point in rad["curve"]] == [point["tokens"] for point in uniform["curve"]]


def test_fine_tuning_goes_on_from_the_distilled_student_and_is_the_same_for_both(finished: Path) -> None:
    out = finished / "out"
    for folder in (out, out / "arms" / "uniform"):
        distilled, tuned = (read_json(folder / name)["evaluations"] for name in ("distill.json", "finetune.json"))
        assert tuned[0]["kl"] == pytest.approx(distilled[-1]["kl"], rel=1e-4)
        assert [row["step"] for row in tuned] == [0, 2, 4]
        before, after = (load_file(folder / name / "model.safetensors") for name in ("distilled", "student"))
        assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
        assert not (folder / "finetune" / "checkpoints").exists()
    rad, uniform = (read_json(out / name / "finetune.json")["curve"] for name in (".", "arms/uniform"))
    assert [row["tokens"] for row in rad] == [row["tokens"] for row in uniform]
    assert "while fine-tuning" in (out / "report.html").read_text()


def test_fine_tuning_taken_out_and_in_again_costs_no_distillation(finished: Path) -> None:
    out, recipe = finished / "out", write_recipe(finished)
    run(load_recipe(recipe), out)
    before = read_json(out / "run.json")["stages"]
    distilled, tuned = (load_file(out / name / "model.safetensors") for name in ("distilled", "student"))
    run(load_recipe(recipe, ["finetune=null"]), out, ["distill", "finetune", "report"])
    tuned_steps = {"finetune:hybrid", "finetune:uniform"}
    assert read_json(out / "run.json")["stages"] == {
        step: record for step, record in before.items() if step not in tuned_steps
    }
    assert not (out / "distilled").exists()
    student = load_file(out / "student" / "model.safetensors")
    assert all(torch.equal(tensor, distilled[name]) for name, tensor in student.items())
    assert "while fine-tuning" not in (out / "report.html").read_text()
    run(load_recipe(recipe), out, ["distill", "finetune"])
    after = read_json(out / "run.json")["stages"]
    assert {step for step in after if after[step] != before[step]} == tuned_steps
    student = load_file(out / "student" / "model.safetensors")
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in student.items())


def test_fine_tuning_on_documents_of_its_own(finished: Path) -> None:
    rows = [{"prompt": f"What is {n} + {n}?", "response": f"{n} twice is {2 * n}."} for n in range(20)]
    other = finished / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "jsonl", "path": str(other), "train": 8, "calibration": 1, "heldout": 3}
    run(load_recipe(write_recipe(finished)), finished / "out")
    out = shutil.copytree(finished / "out", finished / "own")
    before = read_json(out / "run.json")["stages"]
    recipe = load_recipe(
        write_recipe(finished, finetune={"steps": 2, "tokens_per_batch": 200, "save_seconds": 0, "data": data})
    )
    run(recipe, out, ["data", "distill", "finetune"])
    after = read_json(out / "run.json")["stages"]
    changed = {"data:finetune", "finetune:hybrid", "finetune:uniform"}
    assert {step for step in after if after[step] != before.get(step)} == changed
    own = DataSplits.load(out / "data" / "finetune")
    assert (len(own.train), len(own.heldout)) == (8, 3)
    assert all("twice" in (record.example.response or "") for record in [*own.train, *own.heldout])
    evaluated = {record.example.prompt for record in DataSplits.load(out / "data").heldout}
    assert not evaluated & {record.example.prompt for record in [*own.train, *own.heldout]}
    tuned = read_json(out / "finetune.json")
    assert tuned["curve"][0]["tokens"] <= sum(len(document.tokens) for document in own.documents("train"))
    other.write_text(other.read_text().replace("twice", "doubled"))
    run(recipe, out, ["data", "distill", "finetune"])
    again = read_json(out / "run.json")["stages"]
    assert {step for step in again if again[step] != after[step]} == changed


@pytest.mark.slow
def test_fit_and_distillation_on_documents_of_their_own(finished: Path) -> None:
    """Each stage reads its own documents, none of them those of the evaluation, and is redone when they change."""

    def data(name: str, words: str, train: int) -> dict[str, object]:
        rows = [{"prompt": f"What is {n} + {n}?", "response": f"{n} {words} {2 * n}."} for n in range(20)]
        (finished / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"kind": "jsonl", "path": str(finished / name), "train": train, "calibration": 1, "heldout": 2}

    own = {"align": data("align.jsonl", "and itself make", 8), "distill": data("distill.jsonl", "twice is", 6)}
    plain = write_recipe(finished)
    run(load_recipe(plain), finished / "out")
    out = shutil.copytree(finished / "out", finished / "two")
    before = read_json(out / "run.json")["stages"]
    settings = load_recipe(plain).model_dump(mode="json")
    sections = {name: {**settings[name], "data": own[name]} for name in own}
    recipe = load_recipe(write_recipe(finished, **sections))
    run(recipe, out, ["data", "diagnose", "convert", "distill", "finetune", "evaluate"])
    after = read_json(out / "run.json")["stages"]
    trained = {f"{stage}:{arm}" for stage in ("distill", "finetune") for arm in ("hybrid", "uniform")}
    changed = {"data:align", "data:distill", *trained, "evaluate"}
    assert {step for step in after if after[step] != before.get(step)} == changed
    fitted, taught = (DataSplits.load(out / "data" / name) for name in own)
    assert all("make" in (record.example.response or "") for record in fitted.train)
    assert all("twice" in (record.example.response or "") for record in [*taught.train, *taught.heldout])
    evaluated = {record.example.prompt for record in DataSplits.load(out / "data").heldout}
    assert not evaluated & {record.example.prompt for record in [*fitted.train, *taught.train, *taught.heldout]}
    apart = 1  # an eighth of eight documents
    tokens = sum(len(document.tokens) for document in fitted.documents("train")[:-apart])
    assert read_json(out / "align.json")["tokens"] == tokens
    assert read_json(out / "distill.json")["curve"][0]["tokens"] <= sum(
        len(document.tokens) for document in taught.documents("train")
    )
    data("align.jsonl", "with its like makes", 8)
    run(recipe, out, ["data", "diagnose", "convert", "distill"])
    again = read_json(out / "run.json")["stages"]
    assert {step for step in again if again[step] != after[step]} == {
        "data:align",
        "distill:hybrid",
    }  # the baseline is not fitted


def test_another_text_in_the_same_data_file_is_noticed(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(finished, data={**DATA, "path": str(tmp_path / "data.jsonl")}))
    text = (finished / "data.jsonl").read_text()
    for content in (text, text.replace("sum", "whole")):
        (tmp_path / "data.jsonl").write_text(content)
        run(recipe, tmp_path / "out", ["data"])
    assert "whole" in (tmp_path / "out" / "data" / "train.jsonl").read_text()


@pytest.mark.slow
def test_the_student_loads_where_radistill_is_not_installed(finished: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['radistill'] = None\n"  # importing it fails
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(finished / 'out' / 'student')!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(finished / 'out' / 'student')!r})\n"
        "text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'Hi'}], tokenize=False)\n"
        "ids = tokenizer(text, return_tensors='pt').input_ids\n"
        "print(type(model).__name__, model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1])\n"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd="/")
    assert ended.stdout.split() == ["GraniteMoeHybridForCausalLM", "True"], ended.stderr


def test_nothing_is_done_twice(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_json(finished / "out" / "run.json")["stages"]
    run(load_recipe(write_recipe(finished)), finished / "out")
    assert capsys.readouterr().err.count("done before, inputs unchanged") == len(before)
    assert read_json(finished / "out" / "run.json")["stages"] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("evaluate.samples=1", {"evaluate"}),
        ("distill.steps=7", {"distill:hybrid", "distill:uniform", "finetune:hybrid", "finetune:uniform", "evaluate"}),
        ("finetune.steps=3", {"finetune:hybrid", "finetune:uniform", "evaluate"}),
        ("arms.uniform.distill={steps: 3}", {"distill:uniform", "finetune:uniform", "evaluate"}),
    ],
)
def test_a_changed_recipe_runs_only_what_it_touches(finished: Path, override: str, touched: set[str]) -> None:
    run(load_recipe(write_recipe(finished)), finished / "out")
    before = read_json(finished / "out" / "run.json")["stages"]
    run(load_recipe(write_recipe(finished), [override]), finished / "out")
    after = read_json(finished / "out" / "run.json")["stages"]
    assert {step for step in after if after[step] != before[step]} == touched


@pytest.mark.slow
def test_without_baseline_alignment_or_training(tmp_path: Path) -> None:
    tiny.save("qwen2", tmp_path / "model")
    without = ["align=null", "distill=null", "finetune=null", "arms={}"]
    recipe = load_recipe(write_recipe(tmp_path), ["convert.init=zero", *without])
    out = run(recipe, tmp_path / "out")
    evaluation = read_json(out / "evaluation.json")
    assert set(evaluation) == {"base", "draft", "hybrid", "samples"}
    # Nothing was trained, so the hybrid is the skip draft that the search judged.
    assert evaluation["hybrid"]["kl"] == evaluation["draft"]["kl"]


@pytest.mark.slow
def test_stages_one_by_one_are_the_run(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(finished))
    for stage in STAGES:
        run(recipe, tmp_path / "out", [stage])
    _assert_same(tmp_path / "out", finished, recipe)


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    with pytest.raises(RadistillError, match="stage 'train' is unknown; stages are data, tradeoff, diagnose"):
        run(load_recipe(write_recipe(tmp_path)), tmp_path / "out", ["train"])


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(finished: Path, tmp_path: Path) -> None:
    """kill -9 whenever something new has appeared; then the last start runs to the end."""
    out = tmp_path / "out"
    recipe = write_recipe(finished)
    moments = ["data/responses.jsonl", "search/study.db", "aligned", "checkpoints"]
    moments += ["arms/uniform/checkpoints", "finetune/checkpoints"]
    program = (
        "import sys\nfrom radistill.cli import main\n"
        f"sys.argv = ['radistill', 'run', {str(recipe)!r}, '--out', {str(out)!r}]\nmain()\n"
    )
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ)
        )
        deadline = time.monotonic() + 120
        while not (out / moment).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (out / moment).exists(), process.communicate()[1].decode()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(load_recipe(recipe), out)
    _assert_same(out, finished, load_recipe(recipe))


def _assert_same(out: Path, finished: Path, recipe: Any) -> None:
    """Same plan, same losses, same figures; only times differ."""
    reference = finished / "out"
    run(recipe, reference)  # another test may have left other settings' results
    ours, theirs = read_json(out / "plan.json"), read_json(reference / "plan.json")
    for plan in (ours, theirs):
        plan.pop("seconds")
    assert ours == theirs
    for name in ("distill.json", "arms/uniform/distill.json", "finetune.json", "arms/uniform/finetune.json"):
        ours, theirs = read_json(out / name), read_json(reference / name)
        assert ours["curve"] == theirs["curve"]
        assert ours["evaluations"] == theirs["evaluations"]
    assert read_json(out / "evaluation.json") == read_json(reference / "evaluation.json")


@pytest.mark.slow
def test_a_run_that_does_not_say_by_what_searches_by_replaceability_and_fits_its_blocks_once(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnose = {"budget": 2, "selector": "kl-guided"}
    path = write_recipe(finished, diagnose=diagnose, convert={"init": "random"})
    run(load_recipe(path), finished / "swaps", ["data", "diagnose", "convert", "distill"])
    said = " ".join(capsys.readouterr().err.split())
    assert "diagnose: a block is fitted to each of 4 attentions first" in said
    assert "the draft with fitted blocks in their place has" in said
    assert "the draft without their attention has" in said  # the baseline's
    plan = read_json(finished / "swaps" / "plan.json")
    assert plan["by"] == "replaceability"
    # The blocks of all four layers, fitted before the search; `align` found its two among them.
    blocks = sorted((finished / "swaps" / "aligned").glob("layer-*.json"))
    assert len(blocks) == 4
    plan_written = (finished / "swaps" / "plan.json").stat().st_mtime_ns
    assert all(block.stat().st_mtime_ns < plan_written for block in blocks)
    fitted = [fit["layer"] for fit in read_json(finished / "swaps" / "align.json")["layers"]]
    assert fitted == plan["replace"]
    assert read_json(finished / "swaps" / "arms" / "uniform" / "plan.json")["by"] == "redundancy"


def test_with_a_penalty_the_baseline_replaces_as_many_layers(finished: Path) -> None:
    path = write_recipe(
        finished,
        diagnose={"budget": 3, "by": "redundancy", "penalty": 0.0},
        arms={"single": {"selector": "leave-one-out"}},
    )
    run(load_recipe(path), finished / "free", ["data", "diagnose"])
    plan, baseline = (read_json(finished / "free" / name / "plan.json") for name in (".", "arms/single"))
    assert len(plan["replace"]) == len(baseline["replace"]) == 1
    assert plan["objective"]["penalty"] == 0.0
    assert "penalty" not in baseline["objective"]
