"""Scales, ticks and the lines through the data."""

import math
from pathlib import Path

import pytest
from example_run import REPLACE, distill, plan, write, write_example_run

from radistill.report.figures.curves import finetune_figure, heldout_figure, loss_figure
from radistill.report.figures.search import search_figure
from radistill.report.svg import Scale, tag, value_scale
from radistill.runs.read import read_run


def test_attributes_and_content_are_escaped() -> None:
    assert tag("text", "<b>&", x=1.0, class_='a"b') == '<text x="1" class="a&#34;b">&lt;b&gt;&amp;</text>'


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 97_440, [0, 20_000, 40_000, 60_000, 80_000]), (-3.6, 0.1, [-3, -2, -1, 0])],
)
def test_round_ticks(low: float, high: float, expected: list[float]) -> None:
    assert Scale(low, high, 0, 100).ticks(4 if high < 90_000 else 5) == expected


def test_logarithmic_scale_and_ticks() -> None:
    scale = value_scale([0.1, 1.0, 10.0], 100, 0, log_above=8)
    assert scale.log
    assert scale(1.0) == pytest.approx(50)
    assert scale.ticks(5) == pytest.approx([0.1, 1, 10])
    assert scale(0.1) - scale(1.0) == pytest.approx(scale(1.0) - scale(10.0))


@pytest.mark.parametrize("values", [[0.0], [5.0], [-2.0], [0.3, 0.3], [1e-12, 1e9], [-1e6, 3.0], [0.0, 1e-9]])
def test_every_value_is_on_the_scale(values: list[float]) -> None:
    scale = value_scale(values, 100, 0, log_above=8)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 12
    assert all(
        math.isfinite(tick) and scale.low - 1e-9 <= tick <= scale.high + 1e-6 * abs(scale.high) + 1e-9 for tick in ticks
    )


def test_the_best_so_far_counts_only_whole_sets(tmp_path: Path) -> None:
    # Single layers score near 0.95, whole sets at most 0.74: the line must not start at the former.
    folder = read_run(write_example_run(tmp_path))
    figure = search_figure(folder)
    assert figure is not None
    line = next(part for part in str(figure.drawing).split("<path ")[1:] if 'class="best"' in part)
    heights = [float(point.split()[1]) for point in line.split('"')[1].lstrip("M").split("L")]
    assert heights == sorted(heights, reverse=True)  # heights grow downwards on a page
    assert "the best, 0.740, in trial 83" in figure.drawing
    assert str(figure.drawing).count('class="chosen"') == 2  # once for each width


def test_kinds_of_trials_are_told_apart_by_shape(tmp_path: Path) -> None:
    changed = plan(30, REPLACE)
    changed["search"].append({"trial": 90, "layers": [3, 6], "value": 0.5})
    write(write_example_run(tmp_path) / "plan.json", changed)
    figure = search_figure(read_run(tmp_path))
    assert figure is not None
    kinds = ["single layers", "sets of the budget's size", "sets of other sizes"]
    assert [meaning for _, meaning in figure.legend][:3] == kinds
    samples = [str(sample) for sample, _ in figure.legend[:3]]
    assert "circle" in samples[0]
    assert len({sample.count(",") for sample in samples}) >= 2 or samples[1] != samples[2]


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    write(write_example_run(tmp_path) / "distill.json", distill(1.0, 0.5, steps=20_000))
    figure = loss_figure(read_run(tmp_path))
    assert figure is not None
    assert figure.notes == ("Each point is the mean of about 167 recorded steps.",)
    assert len(str(figure.drawing)) < 20_000


def test_the_axis_names_the_teacher_if_it_is_another(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    figure = heldout_figure(read_run(folder))
    assert figure is not None
    assert "Held-out KL to the base" in figure.drawing
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("teacher: null", "teacher: larger-model")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    figure = heldout_figure(read_run(folder))
    assert figure is not None
    assert "Held-out KL to the teacher" in figure.drawing


def test_fine_tuning_has_a_figure_of_its_own(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    figure = finetune_figure(read_run(folder))
    assert figure is not None
    assert "Held-out KL to the base while fine-tuning" in figure.drawing
    assert [name for _, name in figure.legend] == [name for _, name in heldout_figure(read_run(folder)).legend]
    assert "0.151" in figure.drawing
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("finetune: {steps: 20}", "finetune: null")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert finetune_figure(read_run(folder)) is None


def test_the_held_out_kl_of_a_stored_teacher_says_what_it_is(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    figure = heldout_figure(read_run(folder))
    assert figure is not None
    assert not figure.notes
    write(folder / "distill.json", {**distill(1.0, 0.5), "heldout_kl": "top-k"})
    figure = heldout_figure(read_run(folder))
    assert figure is not None
    assert figure.notes[0].startswith("A lower bound")
