"""Arms: hybrids beside the main one, each saying only what differs from it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from radistill.errors import RadistillError
from radistill.runs.arms import Arm, ArmSettings
from radistill.runs.recipe import Recipe, load_recipe

UNFITTED = {"by": "redundancy", "align": None}


def recipe_with(folder: Path, arms: dict[str, Any], **sections: Any) -> Recipe:
    settings = {"model": "some/model", "data": {"kind": "jsonl", "path": "x.jsonl"}, "diagnose": {"budget": 2}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **sections, "arms": arms}))
    return load_recipe(path)


def arm(folder: Path, settings: dict[str, Any], **sections: Any) -> Arm:
    return recipe_with(folder, {"other": settings}, **sections).hybrids[1]


def test_an_arm_that_says_nothing_is_the_main_hybrid_by_another_name(tmp_path: Path) -> None:
    main, other = recipe_with(tmp_path, {"other": {}}, finetune={"steps": 3}).hybrids
    assert (main.name, other.name) == ("hybrid", "other")
    assert (main.is_main, other.is_main) == (True, False)
    assert {**vars(other), "name": "hybrid"} == vars(main)


def test_an_arm_differs_in_what_it_says(tmp_path: Path) -> None:
    settings = {
        "selector": "uniform",
        "budget": 3,
        "teacher": "larger/model",
        "align": {"steps": 5},
        "distill": {"steps": 9, "loss": {"kind": "jsd"}},
        "finetune": {"steps": 4},
    }
    found = arm(tmp_path, settings, align={"steps": 7, "held_out": 0.25})
    assert (found.selector.kind, found.budget, found.teacher) == ("uniform", 3, "larger/model")
    assert found.align is not None
    assert (found.align.steps, found.align.held_out) == (5, 0.25)
    assert found.distill is not None
    assert (found.distill.steps, found.distill.loss.kind) == (9, "jsd")
    assert found.finetune is not None
    assert found.finetune.steps == 4


def test_null_leaves_a_stage_out_and_the_model_s_own_name_is_self_distillation(tmp_path: Path) -> None:
    left_out = {**UNFITTED, "init": "zero", "distill": None, "teacher": "some/model"}
    found = arm(tmp_path, left_out, teacher="larger/model")
    assert (found.align, found.distill, found.finetune, found.teacher) == (None, None, None, None)
    assert not found.trainings


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({**UNFITTED, "init": "transfer"}, 1e-2),
        ({**UNFITTED, "init": "transfer", "rate": 2e-3}, 2e-3),
        ({**UNFITTED, "init": "transfer", "distill": {"new_block_learning_rate": 3e-3}}, 3e-3),
        ({**UNFITTED, "init": "random"}, 1e-3),
        ({**UNFITTED, "init": "zero"}, 7e-5),
        ({"init": "random"}, 7e-5),  # fitted
        ({}, 7e-5),
    ],
)
def test_an_arm_is_trained_at_a_rate_for_its_start(tmp_path: Path, settings: dict[str, Any], rate: float) -> None:
    found = arm(tmp_path, settings, distill={"new_block_learning_rate": 7e-5})
    assert found.distill is not None
    assert found.distill.new_block_learning_rate == rate
    assert found.distill.rate_search is None


@pytest.mark.parametrize("settings", [{"distill": {"loss": {"kind": "jsd"}}}, {"by": "redundancy"}])
def test_an_arm_that_starts_as_the_main_one_has_its_rate(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Blocks that are not fitted, in both: what differs is not the start."""
    same = {"align": None, "convert": {"init": "transfer"}, "diagnose": {"budget": 2, "by": "redundancy"}}
    found = arm(tmp_path, settings, distill={"new_block_learning_rate": 5e-4}, **same)
    assert found.distill is not None
    assert found.distill.new_block_learning_rate == 5e-4
    found = arm(tmp_path, settings, distill={"rate_search": {"rates": [1e-3]}}, **same)
    assert found.distill is not None
    assert found.distill.rate_search is not None
    assert found.distill.rate_search.rates == [1e-3]


def test_a_search_that_an_arm_asks_for_is_kept(tmp_path: Path) -> None:
    found = arm(tmp_path, {**UNFITTED, "init": "transfer", "distill": {"rate_search": {"rates": [1e-5, 1e-4]}}})
    assert found.distill is not None
    assert found.distill.rate_search is not None
    assert found.distill.rate_search.rates == [1e-5, 1e-4]


def test_rates_to_choose_from(tmp_path: Path) -> None:
    distill = {"rate_search": {"rates": [1e-5, 1e-4], "share": 0.25}}
    main, fixed, other = recipe_with(
        tmp_path, {"fixed": {"rate": 1e-3}, "other": {"rate": [1e-4, 1e-3]}}, distill=distill
    ).hybrids
    searches = [hybrid.distill.rate_search if hybrid.distill else None for hybrid in (main, fixed, other)]
    assert searches[1] is None
    assert [(search.rates, search.share) for search in searches if search] == [
        ([1e-5, 1e-4], 0.25),
        ([1e-4, 1e-3], 0.25),
    ]


def test_where_the_search_says_how_many_an_arm_has_as_many(tmp_path: Path) -> None:
    diagnose = {"budget": 4, "penalty": 0.1}
    assert arm(tmp_path, {}, diagnose=diagnose).budget is None
    assert arm(tmp_path, {"budget": 2}, diagnose=diagnose).budget == 2
    assert arm(tmp_path, {}).budget == 2


def test_a_saved_recipe_has_the_same_arms(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, {"a": {**UNFITTED, "init": "transfer"}, "b": {"rate": [1e-4, 3e-4]}, "c": {}})
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").hybrids == recipe.hybrids
    differences = {"by": "redundancy", "align": None, "init": "transfer"}
    saved = load_recipe(tmp_path / "saved.yaml").arms["a"]
    assert saved == ArmSettings.model_validate(differences)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"A b": {}}, "arms.A b: must be up to 40 of a-z, 0-9, _, - and ., and not end in _start, not 'A b'"),
        ({"../x": {}}, r"arms.../x: must be up to 40"),
        ({"x_start": {}}, "arms.x_start: must be up to 40"),
        ({"base": {}}, "arms.base: must be a name that not every run has already"),
        ({"a": None}, "arms.a: must be a mapping of fields, not null"),
        (
            {"a": {"selektor": "greedy"}},
            "arms.a.selektor: unknown field; did you mean 'selector'? allowed: align, budget",
        ),
        ({"a": {"selector": "gredy"}}, "arms.a.selector: 'gredy' is unknown; did you mean 'greedy'?"),
        ({"a": {"align": {"stepps": 1}}}, "arms.a.align.stepps: unknown field; did you mean 'steps'?"),
        ({"a": {"distill": {"steps": 0}}}, "arms.a.distill.steps: must be at least 1, not 0"),
        ({"a": {"distill": {"data": {}}}}, "arms.a.distill.data: all hybrids read the same documents; leave it out"),
        (
            {"a": {"rate": 1e-3, "distill": {"new_block_learning_rate": 1e-5}}},
            "arms.a.rate: arms.a.distill.new_block_learning_rate says it too; leave one of the two out",
        ),
        (
            {"a": {"rate": 1e-3, "distill": {"rate_search": {"rates": [1e-4]}}}},
            "arms.a.rate: arms.a.distill.rate_search says it too",
        ),
        ({"a": {"rate": 1e-3, "distill": None}}, "arms.a.rate: it is not distilled"),
        ({"a": {"rate": [0.1, -1]}}, "arms.a.rate: must be a number or above 0"),
        (
            {"a": {"by": "redundancy", "align": None}},
            "arms.a.init is fitted, which needs a fit, but arms.a.align is null",
        ),
        ({"a": {"align": None}}, "arms.a.by is replaceability, which needs fitted blocks, but arms.a.align is null"),
    ],
)
def test_a_wrong_arm_is_named(tmp_path: Path, arms: dict[str, Any], message: str) -> None:
    with pytest.raises(RadistillError) as caught:
        recipe_with(tmp_path, arms)
    assert str(caught.value).removeprefix(f"{tmp_path / 'recipe.yaml'}: ").startswith(message)
