"""The verdict says what the figures say, and no more."""

from pathlib import Path
from typing import Any

import pytest
from example_run import RECIPE, REPLACE, evaluation, plan, uniform_plan, write, write_example_run

from radistill.report.verdict import verdict
from radistill.runs.read import read_run


def verdict_of(folder: Path, changes: dict[str, dict[str, Any]] | None = None) -> str:
    """The verdict on the example with some metrics changed, in plain spaces."""
    results = evaluation()
    for arm, metrics in (changes or {}).items():
        results[arm] |= metrics
    write(write_example_run(folder) / "evaluation.json", results)
    return " ".join(verdict(read_run(folder))).replace("\N{NO-BREAK SPACE}", " ")


def test_an_improvement(tmp_path: Path) -> None:
    text = verdict_of(tmp_path)
    assert text.startswith("The hybrid keeps 20 of 30 attention layers and needs a third less KV cache.")
    assert (
        "On 16 held-out documents its KL to the base is 0.137 nats per response token, "
        "0.17 of the draft that only skips these layers (0.830) and 0.059 of the arm uniform (2.31)." in text
    )
    assert "29 % of 48 problems, the base 35 %; the 95 % intervals overlap" in text
    assert "as good as" not in text


def test_a_hybrid_that_is_worse_than_its_start(tmp_path: Path) -> None:
    text = verdict_of(tmp_path, {"hybrid": {"kl": 1.245}})
    assert "1.5 times the draft that only skips these layers (0.830)" in text
    assert "Training has made the hybrid worse." in text


def test_a_hybrid_that_did_not_move(tmp_path: Path) -> None:
    text = verdict_of(tmp_path, {"hybrid": {"kl": 0.83}})
    assert "no better than the draft that only skips these layers (0.830)" in text
    assert "worse" not in text


def test_a_better_baseline(tmp_path: Path) -> None:
    text = verdict_of(tmp_path, {"uniform": {"kl": 0.05}})
    assert "2.7 times the arm uniform (0.0500)" in text
    assert "The arm uniform is the better model here." in text


@pytest.mark.parametrize("kl", [None])
def test_a_kl_that_is_no_number(tmp_path: Path, kl: float | None) -> None:
    assert "nothing can be said about its quality" in verdict_of(tmp_path, {"hybrid": {"kl": kl}})


def test_a_loss_beyond_the_intervals(tmp_path: Path) -> None:
    base = {"exact_match": 0.9, "exact_match_interval": [0.8, 0.95]}
    assert "a loss beyond the 95 % intervals" in verdict_of(tmp_path, {"base": base})


def test_unmeasured_tasks_are_named_as_such(tmp_path: Path) -> None:
    text = verdict_of(tmp_path, {"hybrid": {"exact_match": None}})
    assert "Exact match on tasks was not measured" in text


@pytest.mark.parametrize(
    ("cache", "expected"),
    [(11_520, "half the KV cache"), (23_040, "0 % less"), (17_700, "23 % less"), (46_080, "100 % more")],
)
def test_the_saving_in_words(tmp_path: Path, cache: int, expected: str) -> None:
    assert expected in verdict_of(tmp_path, {"hybrid": {"kv_bytes_per_token": cache}})


def test_a_plan_that_replaces_nothing(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    write(folder / "plan.json", uniform_plan(30, 0))
    assert verdict(read_run(folder))[0].startswith("The plan replaces no layer")


def test_no_evaluation_no_judgement(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    (folder / "evaluation.json").unlink()
    assert "has not been evaluated yet" in verdict(read_run(folder))[1]


def test_the_start_is_the_draft_only_if_the_blocks_start_at_zero(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    (folder / "recipe.yaml").write_text(RECIPE.replace("align: {steps: 77}", "align: null"), encoding="utf-8")
    assert "0.17 of the draft that only skips these layers (0.830)" in verdict(read_run(folder))[0]
    results = evaluation()
    del results["hybrid_start"]  # it would be the draft once more
    write(folder / "evaluation.json", results)
    assert "0.17 of where it started (0.830)" in verdict(read_run(folder))[0]


def test_layers_chosen_by_fitted_blocks_are_compared_with_these_and_not_with_skips(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    write(folder / "plan.json", plan(30, REPLACE) | {"by": "replaceability"})
    assert "0.65 of where its fitted blocks started (0.210) and 0.059 of" in verdict(read_run(folder))[0]
    results = evaluation()
    results["hybrid"]["kl"] = 0.25  # far below the skips' 0.83, and yet a loss
    write(folder / "evaluation.json", results)
    text = verdict(read_run(folder))[0]
    assert "1.2 times where its fitted blocks started (0.210)" in text
    assert "Training has made the hybrid worse." in text
    del results["hybrid_start"]
    write(folder / "evaluation.json", results)
    assert "0.30 of the draft that only skips these layers (0.830)" in verdict(read_run(folder))[0]


def test_every_arm_is_compared_with(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    (folder / "recipe.yaml").write_text(RECIPE + "  skipped: {init: random}\n", encoding="utf-8")
    results = evaluation()
    results["skipped"] = {**results["hybrid"], "kl": 0.1}
    write(folder / "evaluation.json", results)
    text = verdict(read_run(folder))[0]
    assert "0.059 of the arm uniform (2.31) and 1.4 times the arm skipped (0.100)" in text
    assert text.endswith("The arm skipped is the better model here.")
