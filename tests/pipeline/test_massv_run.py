"""A run whose result is a drafter that sees: connected, trained in two phases, measured; and its dry run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from data.test_pictures_in_data import png
from radistill.errors import RadistillError
from radistill.export import export
from radistill.files import read_json
from radistill.models.loading import load
from radistill.models.pictures import SEEING
from radistill.pipeline import context
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.processes import Processes
from radistill.runs.folder import RunFolder
from radistill.runs.recipe import load_recipe

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "drafter.md"
TRAINING = {"steps": 3, "tokens_per_batch": 400, "eval_steps": 3, "report_to": "none"}


def recipe_of(folder: Path, **sections: Any) -> Path:
    pictures = [(40 * n % 250, 90, 200 - 9 * n) for n in range(16)]
    rows = []
    for number, colour in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(png(colour, (20 + number, 12)))
        rows.append({"prompt": f"What is {number}?", "response": f"A {number}.", "images": [f"{number}.png"]})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "jsonl", "path": str(folder / "data.jsonl"), "train": 8, "calibration": 2, "heldout": 3}
    answers = {"responses": {"source": "teacher", "max_new_tokens": 6}}
    recipe = {
        "model": str(folder / "language"),
        "teacher": str(folder / "target"),
        "threads": 1,
        "data": data | answers,
        "diagnose": {"budget": 0},
        "convert": {"target": "massv"},
        "connect": {**TRAINING, "data": data | {"responses": {"source": "data"}}},
        "distill": {**TRAINING, "other_learning_rate": 1e-3, "loss": {"kind": "lk-alpha"}},
        "arms": {"phase-1": {"distill": None}},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("section", ["connect", "distill"])
def test_a_step_that_processes_cannot_share_is_refused_before_any_work(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "join", lambda device: Processes(0, 2))
    steps = {"connect": 2, "distill": 2, section: 3}
    recipe = load_recipe(recipe_of(tmp_path), [f"{name}.gradient_accumulation={one}" for name, one in steps.items()])
    with pytest.raises(RadistillError, match=rf"^{section}\.gradient_accumulation is 3, which 2 processes"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_phases_in_one_recipe(tmp_path: Path) -> None:
    target, language = tiny.seeing("idefics3"), tiny.seeing("idefics3", layers=2, seed=3, intermediate_size=32)
    target.save(tmp_path / "target")
    language.save(tmp_path / "language")
    recipe = load_recipe(recipe_of(tmp_path))
    guessed = estimate(recipe)
    out = run(recipe, tmp_path / "out")
    student = load(out / "student", images=True)
    first = load(out / "arms" / "phase-1" / "student", images=True)
    start = load(RunFolder(out).hybrid().start, images=True)
    parts = SEEING["idefics3"]
    for name, tensor in student.network.named_parameters():
        if parts.is_vision(name):
            assert torch.equal(tensor, target.network.get_parameter(name))
        else:
            assert not torch.equal(tensor, first.network.get_parameter(name)) or "bias" in name, name
        if not name.startswith(parts.connector):
            assert torch.equal(first.network.get_parameter(name), start.network.get_parameter(name)), name
    total = sum(parameter.numel() for parameter in student.network.parameters())
    assert next(model for model in guessed.models if model.role == "hybrid").total == total
    figures = read_json(out / "evaluation.json")
    assert {"base", "draft", "hybrid", "phase-1"} <= figures.keys()
    kept = (out / "student" / "model.safetensors").stat().st_mtime_ns
    run(recipe, out)
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == kept
    exported = load(export(out, "hf", tmp_path / "exported"), images=True)
    assert exported.fingerprint == student.fingerprint
    assert exported.reader is not None
    assert exported.reader.signature == target.reader.signature  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": None}, "convert.target is massv, a drafter for a teacher that reads images; name that in teacher"),
        ({"diagnose": {"budget": 1}}, "convert.target is massv, from which no layer goes; set diagnose.budget to 0"),
        ({"convert": {"target": "cut"}}, "connect is for convert.target: massv; leave it out"),
    ],
)
def test_what_contradicts_itself_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        load_recipe(recipe_of(tmp_path, **sections))


@pytest.mark.slow
def test_the_documented_way_passes_a_dry_run_from_configs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [text] = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL) if "massv" in block]
    Path("recipe.yaml").write_text(text)
    found = estimate(load_recipe("recipe.yaml"))
    drafter = next(model for model in found.models if model.role == "hybrid")
    teacher = next(model for model in found.models if model.role == "teacher")
    assert 5e8 < drafter.total < 6.5e8
    assert 2.1e9 < teacher.total < 2.5e9
    assert {"connect", "distill"} <= found.memory.keys()
