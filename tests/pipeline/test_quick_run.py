"""A run without a recipe: model, data and budget in one line, and defaults for the rest."""

import json
import sys
from pathlib import Path

import pytest

import tiny
from radistill import hybridize
from radistill.cli import main
from radistill.data.settings import JsonlData
from radistill.data.sources import settings_of, shares
from radistill.errors import RadistillError
from radistill.models.loading import load_config
from radistill.runs.recipe import load_recipe, recipe_for

QUICK = [
    "align.steps=1",
    "distill.steps=2",
    "evaluate.exact_match=false",
    "evaluate.max_new_tokens=4",
    "threads=1",
    "data.responses.max_new_tokens=4",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a file of 40 prompts, where the test is."""
    tiny.save("llama", tmp_path / "model", layers=3)
    write(tmp_path / "prompts.jsonl", 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(count)))


def test_one_line_runs_and_leaves_its_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [word for override in QUICK for word in ("--set", override)]
    command = ["radistill", "run", "--model", "model", "--data", "prompts.jsonl", "--budget", "1", "--out", "runs/mine"]
    monkeypatch.setattr(sys, "argv", [*command, *overrides])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert (folder / "runs/mine/report.html").is_file()
    recipe = load_recipe(folder / "runs/mine/recipe.yaml")
    assert recipe == recipe_for("model", "prompts.jsonl", 1, QUICK).for_model(load_config("model"))
    assert (recipe.data.train, recipe.data.calibration, recipe.data.heldout) == (35, 32, 5)
    # In Python it is the same run, which has nothing left to do.
    before = (folder / "runs/mine/run.json").read_text()
    assert hybridize("model", "prompts.jsonl", budget=1, out="runs/mine", overrides=QUICK) == Path("runs/mine")
    assert (folder / "runs/mine/run.json").read_text() == before


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, (2, 2, 1)), (8, (7, 7, 1)), (200, (175, 32, 25)), (600, (536, 32, 64)), (5000, (1000, 32, 64))],
)
def test_the_data_is_shared_out_as_far_as_it_goes(tmp_path: Path, count: int, expected: tuple[int, int, int]) -> None:
    write(tmp_path / "prompts.jsonl", count)
    found = shares(JsonlData(path=tmp_path / "prompts.jsonl"), seed=0)
    assert (found["train"], found["calibration"], found["heldout"]) == expected


def test_repeated_prompts_count_once(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", 2)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "What is 0 + 0?"}) + "\n")
    with pytest.raises(RadistillError, match="data: has 2 different prompts; a run needs at least 3"):
        shares(JsonlData(path=tmp_path / "prompts.jsonl"), seed=0)


@pytest.mark.parametrize(
    ("source", "kind"),
    [("a.jsonl", "jsonl"), ("reasoning-gym:chain_sum, gsm_symbolic", "reasoning-gym"), ("some/data", "datasets")],
)
def test_data_in_one_word(source: str, kind: str) -> None:
    assert settings_of(source).kind == kind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "model"], "give either a recipe, or --model, --data and --budget together"),
        (["recipe.yaml", "--model", "m", "--data", "d.jsonl", "--budget", "1"], "give either a recipe, or --model"),
        (["--model", "model", "--data", "none.jsonl", "--budget", "1"], "none.jsonl: no such file"),
        (
            ["--model", "model", "--data", "prompts.jsonl", "--budget", "0"],
            "recipe for model: diagnose.budget is 0",
        ),
        (["--model", "nothing", "--data", "prompts.jsonl", "--budget", "1", "--dry-run"], "nothing: no such"),
        (["--model", "model", "--data", "prompts", "--budget", "1"], "'prompts' is not a source"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["radistill", "run", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (folder / "runs").exists()
