"""The recipe of a run as plain data: it says what the recipe says, and nothing unchecked passes for one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from radistill.errors import RadistillError
from radistill.files import read_json
from radistill.runs.arms import ArmSettings
from radistill.runs.recipe import Recipe, load_recipe
from radistill.runs.run_recipe import TRAININGS, read_run_recipe
from report.example_run import RECIPE, put_on_record

ARMS: dict[str, Any] = {
    "same": {},
    "short": {"by": "redundancy", "selector": "uniform", "init": "zero", "align": None},
    "taught": {"teacher": "larger/model", "distill": {"steps": 7}},
    "itself": {"teacher": "some/model", "distill": None},
    "tuned": {"finetune": {"steps": 2}},
    "untuned": {"finetune": None, "budget": 3},
}
SECTIONS: list[dict[str, Any]] = [
    {},
    {"teacher": "larger/model"},
    {"align": None, "convert": {"init": "zero"}, "diagnose": {"budget": 2, "by": "redundancy"}},
    {"finetune": {"steps": 3, "data": {"kind": "jsonl", "path": "y.jsonl"}}, "distill": {"steps": 4}},
    {"distill": None, "convert": {"target": "qwen3.5"}},
    {"diagnose": {"budget": "auto", "keep": {"kl": 0.1, "tasks": {"gsm8k": -0.1}}}, "evaluate": {"tasks": ["gsm8k"]}},
]


def recipe_with(folder: Path, sections: dict[str, Any]) -> Recipe:
    settings = {"model": "some/model", "data": {"kind": "jsonl", "path": "x.jsonl"}, "diagnose": {"budget": 2}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, "arms": ARMS, **sections}))
    return load_recipe(path)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The recipes that were checked by the classes of a recipe."""
    paths: list[Path] = []

    def load(path: Path) -> Recipe:
        paths.append(path)
        return load_recipe(path)

    monkeypatch.setattr("radistill.runs.recipe.load_recipe", load)
    return paths


@pytest.mark.parametrize("on_record", [True, False])
@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_it_says_what_the_recipe_says(
    tmp_path: Path, loaded: list[Path], sections: dict[str, Any], on_record: bool
) -> None:
    recipe = recipe_with(tmp_path, sections)
    if recipe.convert.target is None:  # as a run does before it saves its recipe
        recipe = recipe.model_copy(update={"convert": recipe.convert.model_copy(update={"target": recipe.target})})
    put_on_record(tmp_path, recipe)
    found = read_run_recipe(tmp_path / "recipe.yaml", read_json(tmp_path / "run.json") if on_record else {})
    assert bool(loaded) != on_record
    assert found.fields == recipe.model_dump(mode="json")
    assert found.text == recipe.to_yaml()
    assert found.target == recipe.target.model_dump(mode="json")
    assert found.own_data == list(recipe.own_data)
    assert (found.keep != {}) == (recipe.diagnose.keep is not None)
    for told, arm in zip(found.hybrids, recipe.hybrids, strict=True):
        assert (told.name, told.teacher) == (arm.name, arm.teacher)
        assert told.trainings == {name for name in TRAININGS if getattr(arm, name) is not None}
    usual = ArmSettings().model_dump(mode="json")
    for name, settings in recipe.arms.items():
        given = settings.model_dump(mode="json").items()
        assert found.differences(name) == {field: value for field, value in given if value != usual[field]}


def test_a_recipe_that_leaves_something_out_is_completed(tmp_path: Path, loaded: list[Path]) -> None:
    (tmp_path / "recipe.yaml").write_text("{model: m, data: {kind: jsonl, path: x.jsonl}, diagnose: {budget: 2}}")
    found = read_run_recipe(tmp_path / "recipe.yaml", {})
    assert len(loaded) == 1
    assert found.target["kind"] == "granite-hybrid"
    assert found.fields["distill"]["steps"] > 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("distill.steps", -3, "distill.steps"),
        ("distill.stepz", 3, "distill.stepz"),
        ("evaluate.samples", "many", "evaluate.samples"),
        ("arms.uniform.align", 3, "arms.uniform.align"),
        ("arms.uniform.selector.kind", "none", "arms.uniform.selector"),
        ("arms", [], "arms"),
        ("convert", None, "convert"),
        ("models", "m", "models"),
    ],
)
def test_what_was_edited_is_checked(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    put_on_record(tmp_path, load_recipe(path))
    recipe = node = yaml.safe_load(path.read_text())
    *parents, last = field.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RadistillError, match=rf"recipe\.yaml: {message}") as error:
        read_run_recipe(path, read_json(tmp_path / "run.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda sections: sections.pop("data"),
        lambda sections: sections.update(seed=1),
        lambda sections: sections.update(arms=[1]),
        lambda sections: sections.update(arms={"uniform": None}),
        lambda sections: sections.update(more={}),
    ],
)
def test_what_is_not_on_record_is_checked(
    tmp_path: Path, loaded: list[Path], change: Callable[[dict[str, Any]], Any]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    put_on_record(tmp_path, recipe)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["stages"]["diagnose:uniform"]
    change(record["stages"]["evaluate"]["recipe"])
    found = read_run_recipe(tmp_path / "recipe.yaml", record)
    assert len(loaded) == 1
    assert found.fields["data"] == recipe.model_dump(mode="json")["data"]


def test_a_file_and_a_record_that_are_wrong_in_the_same_way_are_checked(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    put_on_record(tmp_path, load_recipe(tmp_path / "recipe.yaml"))
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    record = json.loads((tmp_path / "run.json").read_text())
    recipe["convert"] = record["stages"]["evaluate"]["recipe"]["convert"] = {"init": "zero", "target": ["x"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RadistillError, match=r"convert\.target"):
        read_run_recipe(tmp_path / "recipe.yaml", record)
