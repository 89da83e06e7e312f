"""What a run's record promises: it changes only with the step that used it, and damage heals."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.pipeline.run import run
from radistill.runs.folder import RunFolder
from radistill.runs.read import read_run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

TRAINING = {"tokens_per_batch": 200, "eval_steps": 2, "save_seconds": 0}
ARMS = {"plain": {"init": "zero", "align": None, "finetune": None}}


def write_recipe(folder: Path, **changes: Any) -> Path:
    sections = {
        "diagnose": {"budget": 2, "by": "redundancy", "selector": "uniform"},
        "convert": {"target": "granite-hybrid"},
        "align": {"steps": 2},
        "distill": {"steps": 3, **TRAINING},
        "finetune": {"steps": 2, **TRAINING},
        "arms": ARMS,
        "evaluate": {"max_new_tokens": 4},
    }
    return small_recipe(folder, {"source": "teacher", "max_new_tokens": 4}, **{**sections, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and the run `out` of it."""
    folder = tmp_path_factory.mktemp("record")
    tiny.save("llama", folder / "model", layers=3)
    run(load_recipe(write_recipe(folder)), folder / "out")
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(finished / "out", tmp_path / "out")


def steps(out: Path) -> dict[str, Any]:
    stages: dict[str, Any] = read_json(out / "run.json")["stages"]
    return stages


def lasting(out: Path) -> dict[str, bytes | Any]:
    """What a run has found out, without times: every file that is a result."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        others = (".lock", "answers", "data/responses", "run.json", "report.html", "recipe.yaml")
        if path.is_dir() or name.startswith(others) or path.parent.name == "search":
            continue
        found[name] = without_times(read_json(path)) if path.suffix == ".json" else path.read_bytes()
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = {"seconds", "sha256"}  # a seal covers the seconds, too
        return {key: without_times(item) for key, item in value.items() if key not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {step for step in after if after[step] != before.get(step)}


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("evaluate", ["distill.steps=99999"], "run `radistill finetune`"),
        ("distill", ["distill.hidden.kind=mse", "distill.new_block_learning_rate=1e30", "distill.steps=99999"], None),
        ("data", ["distill.steps=99999", "data.path=/nowhere.jsonl"], "no such file"),
        ("diagnose", ["distill.steps=99999", "diagnose.budget=30"], "diagnose.budget is 30"),
        ("diagnose", ["distill.steps=99999", "data.train=7"], "run `radistill data`"),
    ],
)
def test_a_refused_command_changes_nothing(
    finished: Path, out: Path, stage: str, overrides: list[str], message: str | None
) -> None:
    kept = {name: (out / name).read_bytes() for name in ("recipe.yaml", "run.json")}
    with pytest.raises(RadistillError, match=message):
        run(load_recipe(write_recipe(finished), overrides), out, [stage])
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of a training that diverged
    assert {name: (out / name).read_bytes() for name in kept} == kept
    run(load_recipe(write_recipe(finished)), out)
    assert steps(out) == steps(finished / "out")


@pytest.mark.parametrize("stage", ["data", "diagnose", "convert", "report"])
def test_a_command_that_has_nothing_to_do_keeps_the_recipe(finished: Path, out: Path, stage: str) -> None:
    kept = (out / "recipe.yaml").read_bytes()
    run(load_recipe(write_recipe(finished), ["distill.steps=99999"]), out, [stage])
    assert (out / "recipe.yaml").read_bytes() == kept
    assert "99999" not in (out / "report.html").read_text(encoding="utf-8")


def test_the_report_tells_how_the_hybrid_was_made_not_what_came_after(finished: Path, out: Path) -> None:
    recipe = load_recipe(write_recipe(finished), ["distill.steps=99999", "diagnose.selector=leave-one-out"])
    run(recipe, out, ["diagnose", "report"])
    assert load_recipe(out / "recipe.yaml") == recipe  # of the step that was run
    made = read_run(out).recipe
    assert made is not None
    assert made.fields["diagnose"]["selector"]["kind"] == "leave-one-out"
    assert made.fields["distill"]["steps"] == 3
    assert "99999" not in (out / "report.html").read_text(encoding="utf-8")


def test_what_has_no_effect_runs_nothing_again(finished: Path, tmp_path: Path, out: Path) -> None:
    model = shutil.copytree(finished / "model", tmp_path / "model")
    recipe = finished.with_name("recipe.yaml")
    recipe.write_text(write_recipe(finished).read_text().replace(str(finished / "model"), str(model)))
    run(load_recipe(recipe), out)
    before = steps(out)
    (model / "README.md").write_text("About this model.")
    for file in (*model.iterdir(), finished / "data.jsonl", *out.rglob("*")):
        os.utime(file)
    without = ["save_seconds=5", "report_to=none", "teacher_device=cpu"]
    changes = [f"{section}.{field}" for section in ("distill", "finetune") for field in without]
    changes += [
        "align.memory_gib=1",
        "diagnose.memory_gib=1",
        "diagnose.context_length=9",
        "diagnose.draft_length=3",
        "threads=1",
    ]
    run(load_recipe(recipe, changes), out)
    assert steps(out) == before


def test_other_weights_of_the_same_size_and_time_are_noticed(finished: Path, tmp_path: Path, out: Path) -> None:
    model = shutil.copytree(finished / "model", tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(write_recipe(finished).read_text().replace(str(finished / "model"), str(model)))
    run(load_recipe(recipe), out, ["data"])
    before = steps(out)
    times = (model / "model.safetensors").stat()
    tiny.save("llama", model, layers=3, seed=1)
    os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (model / "model.safetensors").stat().st_size == times.st_size
    run(load_recipe(recipe), out, ["data"])
    assert changed(before, steps(out)) == {"data"}


@pytest.mark.slow
def test_an_arm_that_is_renamed_and_renamed_back_has_its_name(finished: Path, out: Path) -> None:
    names = list(read_json(out / "evaluation.json"))
    other = load_recipe(write_recipe(finished, arms={"other": ARMS["plain"]}))
    run(other, out)
    assert list(read_json(out / "evaluation.json")) == [name.replace("plain", "other") for name in names]
    run(load_recipe(write_recipe(finished)), out)
    assert list(read_json(out / "evaluation.json")) == names
    before = steps(out)
    changed_arm = {"plain": {**ARMS["plain"], "selector": "leave-one-out"}}
    run(load_recipe(write_recipe(finished, arms=changed_arm)), out)
    run(load_recipe(write_recipe(finished)), out)
    assert lasting(out)["evaluation.json"] == lasting(finished / "out")["evaluation.json"]
    assert changed(before, steps(out)) >= {"diagnose:plain"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "data.train=8",
        "data.system=Be brief.",
        "diagnose.selector=leave-one-out",
        "convert.target.state=16",
        "align.steps=3",
        "distill.loss.kind=reverse-kl",
        "distill.teacher_store={top_k: 8}",
        "finetune.new_block_learning_rate=0.001",
        "finetune=null",
        "arms.plain.rate=0.01",
        "evaluate.samples=1",
    ],
)
def test_a_recipe_changed_in_place_gives_what_a_fresh_run_does(
    finished: Path, tmp_path: Path, out: Path, change: str
) -> None:
    recipe = load_recipe(write_recipe(finished), [change])
    run(recipe, out)
    run(recipe, tmp_path / "fresh")
    ours, theirs = lasting(out), lasting(tmp_path / "fresh")
    assert {name for name in theirs if ours.get(name) != theirs[name]} == set()
    told = read_run(out).recipe
    assert told is not None
    assert told.fields == recipe.model_dump(mode="json")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, cut, lambda path: path.write_bytes(b"")], ids=["gone", "cut", "empty"])
@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        ("data/train.jsonl", "data"),
        ("data/heldout.jsonl", "data"),
        ("start/model.safetensors", "convert"),
        ("distilled/model.safetensors", "distill"),
        ("align.json", "distill"),
        ("student/model.safetensors", "finetune"),
        ("student/config.json", "finetune"),
        ("arms/plain/student/tokenizer.json", "distill"),
        ("evaluation.json", "evaluate"),
    ],
)
def test_a_damaged_output_is_made_again(
    finished: Path, out: Path, name: str, made_by: str, damage: Callable[[Path], Any]
) -> None:
    damage(out / name)
    recipe = load_recipe(write_recipe(finished))
    if not name.startswith(("distilled", "align", "evaluation")):  # the others are read by the last stage
        with pytest.raises(RadistillError, match=f"run `radistill {made_by}`"):
            run(recipe, out, ["evaluate"])
    run(recipe, out)
    assert lasting(out) == lasting(finished / "out")


def flip(path: Path) -> None:
    """Change the last digit of a text, or the last byte of weights: what is left is as long, and plausible."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        content[-1] ^= 1
    else:
        place = max(index for index, byte in enumerate(content) if chr(byte).isdecimal())
        content[place] = ord("1") if content[place] != ord("1") else ord("2")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("data/train.jsonl", marks=pytest.mark.slow),
        pytest.param("distilled/model.safetensors", marks=pytest.mark.slow),
        "student/model.safetensors",
        "evaluation.json",
    ],
)
def test_an_output_with_one_other_byte_is_made_again(finished: Path, out: Path, name: str) -> None:
    flip(out / name)
    run(load_recipe(write_recipe(finished)), out)
    assert lasting(out) == lasting(finished / "out")


def test_a_tuned_student_is_not_taken_for_the_distilled_one(finished: Path, out: Path) -> None:
    """Fine-tuning was killed when it had saved its student, and then files were lost."""
    RunFolder(out).forget("finetune:hybrid", 0)
    (out / "finetune.json").unlink()
    shutil.rmtree(out / "distilled")
    run(load_recipe(write_recipe(finished)), out)
    assert lasting(out) == lasting(finished / "out")


def test_a_damaged_plan_is_refused_by_name(finished: Path, out: Path) -> None:
    cut(out / "plan.json")
    with pytest.raises(RadistillError, match=r"plan\.json: .*; correct it, or remove it and run `radistill diagnose`"):
        run(load_recipe(write_recipe(finished)), out)
    (out / "plan.json").unlink()
    run(load_recipe(write_recipe(finished)), out)
    assert lasting(out) == lasting(finished / "out")


def test_a_plan_that_is_written_by_hand_is_followed(finished: Path, out: Path) -> None:
    text = (out / "plan.json").read_text()
    (out / "plan.json").write_text(" " + text)
    run(load_recipe(write_recipe(finished)), out)
    assert (out / "plan.json").read_text() == " " + text


def test_a_recipe_that_was_removed_is_there_again(finished: Path, out: Path) -> None:
    (out / "recipe.yaml").unlink()
    run(load_recipe(write_recipe(finished)), out, ["report"])
    assert load_recipe(out / "recipe.yaml") == load_recipe(write_recipe(finished))
