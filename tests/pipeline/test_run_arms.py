"""A run with several arms: what they share is done once, and a kill changes nothing."""

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
from radistill.errors import RadistillError
from radistill.files import read_json, write_json
from radistill.pipeline import choice, teacher
from radistill.pipeline.run import run
from radistill.runs.read import read_run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

ARMS: dict[str, Any] = {
    "rad": {"by": "redundancy"},
    "rad-jsd": {"by": "redundancy", "distill": {"loss": {"kind": "jsd"}}},
    "rad-zero": {"by": "redundancy", "init": "zero", "align": None, "rate": [1e-4, 1e-3]},
    "uniform-transfer": {"selector": "uniform", "by": "redundancy", "init": "transfer", "align": None},
}
HYBRIDS = ["hybrid", *ARMS]


def write_recipe(folder: Path, **changes: Any) -> Path:
    sections = {
        "diagnose": {"budget": 2},
        "convert": {"target": {"kind": "granite-hybrid", "groups": "heads"}},
        "align": {"steps": 3},
        "distill": {
            "steps": 4,
            "tokens_per_batch": 200,
            "eval_steps": 2,
            "save_seconds": 0,
            "teacher_store": {"top_k": 8},
        },
        "arms": ARMS,
        "evaluate": {"max_new_tokens": 4},
    }
    return small_recipe(folder, {"source": "teacher", "max_new_tokens": 12}, **{**sections, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe with four arms, and the run `out` of it; `counts.json` has what was done."""
    folder = tmp_path_factory.mktemp("arms")
    tiny.save("llama", folder / "model")
    counts = {"store_teacher": 0, "diagnose": 0}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((teacher, "store_teacher"), (choice, "diagnose")):
            original = getattr(module, name)

            def counting(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
                counts[name] += 1
                return original(*args, **kwargs)

            patch.setattr(module, name, counting)
        run(load_recipe(write_recipe(folder)), folder / "out")
    write_json(folder / "counts.json", counts)
    return folder


def figures(out: Path) -> dict[str, Any]:
    """All that a run has found out, without times."""
    found: dict[str, Any] = {"evaluation": read_json(out / "evaluation.json")}
    for name in HYBRIDS:
        folder = out if name == "hybrid" else out / "arms" / name
        result = read_json(folder / "distill.json")
        found[name] = [read_json(folder / "plan.json")["replace"], result["curve"], result["evaluations"]]
    return found


def test_every_arm_has_a_plan_a_curve_and_figures_by_its_name(finished: Path) -> None:
    found = figures(finished / "out")
    measured = [key for key in found["evaluation"] if key != "samples"]
    assert measured == ["base", "draft", *(key for name in HYBRIDS for key in (f"{name}_start", name))]
    assert found["rad"][0] == found["rad-zero"][0] == found["rad-jsd"][0]
    assert found["uniform-transfer"][0] == [0, 2]
    assert found["rad"][1][-1]["tokens"] == found["uniform-transfer"][1][-1]["tokens"]
    assert found["rad"][1][0]["loss"] != found["rad-jsd"][1][0]["loss"]
    page = (finished / "out" / "report.html").read_text(encoding="utf-8")
    assert all(f"The arm {name} replaces" in page for name in ARMS)


def test_shared_work_is_done_once(finished: Path) -> None:
    """One plan for the three arms by redundancy, one pass of the teacher for all, one block for each attention."""
    assert read_json(finished / "counts.json") == {"store_teacher": 1, "diagnose": 3}
    assert len(list((finished / "out" / "aligned").glob("*.safetensors"))) == 4
    assert len(list((finished / "out" / "teacher_store").glob("*/store.json"))) == 1


def test_the_rate_of_an_arm_is_the_best_of_those_it_names(finished: Path) -> None:
    found = read_json(finished / "out" / "arms" / "rad-zero" / "rates" / "rates.json")
    measured = {float(rate): kl for rate, kl in found["kl"].items() if kl is not None}
    assert {1e-4, 1e-3} <= measured.keys()
    assert len(set(measured.values())) == len(measured)  # each was trained with
    assert found["best"] == min(measured, key=measured.__getitem__)
    trained = read_json(finished / "out" / "arms" / "rad-zero" / "distill.json")["curve"]
    assert max(point["learning_rate"] for point in trained) == pytest.approx(found["best"])


@pytest.mark.slow
def test_an_arm_alone_ends_as_beside_others(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(finished, arms={"rad-jsd": ARMS["rad-jsd"]}))
    out = run(recipe, tmp_path / "out", ["data", "diagnose", "convert", "distill"])
    ours, theirs = (
        load_file(folder / "arms" / "rad-jsd" / "student" / "model.safetensors") for folder in (out, finished / "out")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
def test_an_arm_more_runs_only_that_arm(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")
    before = read_json(out / "run.json")["stages"]
    more = {**ARMS, "rad-again": {"by": "redundancy"}}
    run(load_recipe(write_recipe(finished, arms=more)), out)
    after = read_json(out / "run.json")["stages"]
    own = {f"{stage}:rad-again" for stage in ("diagnose", "convert", "distill")}
    assert {step for step in after if after[step] != before.get(step)} == {*own, "evaluate"}
    evaluation = read_json(out / "evaluation.json")
    assert evaluation["rad-again"] == evaluation["rad"]


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        ({"rate": 0.03}, "evaluate", "what `distill` has left of rad is of another recipe, .* run `radistill distill`"),
        ({"align": None, "init": "random"}, "distill", "what `convert` has left of rad is .* run `radistill convert`"),
        ({"finetune": {"steps": 2}}, "evaluate", "run `radistill distill` first"),
    ],
)
def test_a_stage_alone_refuses_what_another_recipe_has_left(
    finished: Path, tmp_path: Path, change: dict[str, Any], stage: str, message: str
) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")
    recipe = load_recipe(write_recipe(finished, arms={**ARMS, "rad": {**ARMS["rad"], **change}}))
    with pytest.raises(RadistillError, match=message):
        run(recipe, out, [stage])
    assert read_json(out / "evaluation.json") == read_json(finished / "out" / "evaluation.json")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["{", "[]", "{}", "null", '{"key": 5, "kl": "low"}'])
def test_damaged_records_of_a_search_are_made_anew(finished: Path, tmp_path: Path, damage: str) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")
    for record in (*out.glob("arms/rad-zero/rates/*/kl.json"), *out.glob("teacher_store-*.json")):
        record.write_text(damage)
    shutil.rmtree(out / "arms" / "rad-zero" / "student")
    run(load_recipe(write_recipe(finished)), out)
    assert figures(out) == figures(finished / "out")


def test_a_damaged_teacher_store_is_written_again(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")
    (shard,) = out.glob("teacher_store/*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-20])
    (out / "arms" / "rad" / "student" / "model.safetensors").unlink()
    run(load_recipe(write_recipe(finished)), out)
    assert figures(out) == figures(finished / "out")


def test_a_report_has_no_arm_that_was_taken_out(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished / "out", tmp_path / "out")
    recipe = load_recipe(write_recipe(finished, arms={"rad": ARMS["rad"]}))
    run(recipe, out, ["report"])
    assert "uniform-transfer at start" in (out / "report.html").read_text(encoding="utf-8")  # nothing was done yet
    run(recipe, out, ["evaluate", "report"])
    assert list(read_run(out).evaluation) == ["base", "draft", "hybrid_start", "hybrid", "rad_start", "rad", "samples"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "rad at start" in page
    assert "uniform-transfer at start" not in page


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_figures(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = write_recipe(finished)
    program = (
        "import sys\nfrom radistill.cli import main\n"
        f"sys.argv = ['radistill', 'run', {str(recipe)!r}, '--out', {str(out)!r}]\nmain()\n"
    )
    for moment in ("aligned", "arms/rad/checkpoints", "arms/rad-zero/rates", "arms/uniform-transfer/checkpoints"):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ)
        )
        deadline = time.monotonic() + 200
        while not (out / moment).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (out / moment).exists(), process.communicate()[1].decode()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(load_recipe(recipe), out)
    assert figures(out) == figures(finished / "out")
