"""The page: complete, self-contained, escaped, and robust against whatever a run folder may hold."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from example_run import RECIPE, REPLACE, align, distill, evaluation, plan, run, uniform_plan, write, write_example_run
from html_checks import Page, read_page

from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.evaluation.evaluate import Evaluation
from radistill.report.page import write_report
from radistill.runs.recipe import Recipe

# All that is read but plan.json. The example's recipe fits only the main hybrid layer by layer.
EXPECTED = ["recipe.yaml", "run.json", "align.json", "distill.json", "finetune.json", "evaluation.json"]
EXPECTED += [f"arms/uniform/{name}.json" for name in ("plan", "distill", "finetune")]


def report(folder: Path, changes: dict[str, Any] | None = None) -> Page:
    """The example's page with some files changed (None removes one), checked to be well-formed."""
    write_example_run(folder)
    for name, content in (changes or {}).items():
        if content is None:
            (folder / name).unlink()
        else:
            write(folder / name, content)
    return checked(write_report(folder).read_text(encoding="utf-8"))


def checked(html: str) -> Page:
    page = read_page(html)
    assert page.problems == []
    identities = page.attributes("id")
    assert len(identities) == len(set(identities))
    assert {target[1:] for target in page.attributes("href") if target.startswith("#")} <= set(identities)
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)
        assert not re.search(r'="[^"]*(nan|inf)\b', svg)
    return page


def in_order(text: str, parts: list[str]) -> bool:
    positions = [text.find(part) for part in parts]
    return -1 not in positions and positions == sorted(positions)


def test_everything_is_there_in_order(tmp_path: Path) -> None:
    text = report(tmp_path).text
    parts = ["SmolLM2-135M-Instruct", "10 of 30 attention layers replaced", "The hybrid keeps 20 of 30"]
    parts += ["Results", "Layers", "Search", "Layer-wise fit", "Training", "Samples", "How it was made"]
    main = text[text.index("How it was made") :]  # behind the table of contents
    assert in_order(text, parts)
    assert in_order(main, ["Results", "Layers", "Search", "Layer-wise fit", "Held-out KL", "Training loss", "Samples"])
    assert in_order(
        main, ["radistill run recipe.yaml --out", "model: smollm2-135m", "distill:hybrid", "9\N{NO-BREAK SPACE}min"]
    )
    assert "This run is not finished" not in text
    assert "out of date" not in text


def test_the_table_has_the_figures(tmp_path: Path) -> None:
    html = write_report(write_example_run(tmp_path)).read_text(encoding="utf-8")
    table = re.search(r"<table>.*?</table>", html, flags=re.DOTALL)
    assert table is not None
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r"<tr.*?</tr>", table[0], flags=re.DOTALL)[1:]]
    rows = [" ".join(row.split()) for row in rows]
    names = ["base", "draft at start", "hybrid at start", "hybrid", "uniform at start"]
    assert [row.startswith(name) for row, name in zip(rows, [*names, "uniform"], strict=True)] == [True] * 6
    assert rows[0].startswith("base 0 100.0 100.0 1.42 35.4 n = 48,")
    assert rows[0].endswith("23,040 720")
    assert rows[2] == "hybrid at start before training 0.210 80.6 72.5 1.74 not measured 15,360 480"
    assert "3 unfinished" in rows[3]
    assert "same tokens" in rows[5]
    assert '<tr class="hybrid">' in table[0]
    assert "2,914 response tokens of 16 held-out documents" in html
    differs = "selector: uniform; target: granite-hybrid with groups heads; init: transfer; align: none."
    assert f"as the hybrid, but {differs}" in " ".join(html.split())


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert page.count("script") == page.count("img") == page.count("iframe") == 0
    assert set(page.attributes("href")) <= {"data:,", *(f"#{identity}" for identity in page.attributes("id"))}
    assert page.attributes("src") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(|https?://", html)


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    page = report(tmp_path)
    for written in ("<script>alert(1)</script>", "onerror=alert(1)>", "{{ 7 * 7 }} {% raw %} &amp;", "alert('prompt')"):
        assert written in page.text
    assert "49" not in page.text.split("{% raw %}")[0][-40:]


@pytest.mark.parametrize("place", ["model", "score_kind", "selector", "stage", "recipe", "arm"])
def test_names_stay_text_too(tmp_path: Path, place: str) -> None:
    evil = "<script>alert(9)</script>"
    folder = write_example_run(tmp_path)
    changed, timed, results = plan(30, REPLACE), run(), evaluation()
    if place in ("model", "score_kind"):
        changed[place] = evil
    elif place == "selector":
        changed["selector"] = {"kind": evil, evil: evil}
    elif place == "stage":
        timed["stages"][evil] = {"seconds": 3, "finished": evil}
        timed["machine"][evil] = [evil]
    elif place == "arm":
        results[evil] = results["hybrid"]
        results["samples"][0][evil] = evil
    else:
        (folder / "recipe.yaml").write_text(RECIPE.replace("smollm2-135m", f"'{evil}'"), encoding="utf-8")
    write(folder / "plan.json", changed)
    write(folder / "run.json", timed)
    write(folder / "evaluation.json", results)
    page = checked(write_report(folder).read_text(encoding="utf-8"))
    assert page.count("script") == 0
    assert "alert(9)" in page.text


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(write_example_run(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_figures_are_described_and_drawn_for_both_widths(tmp_path: Path) -> None:
    page = report(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("svg", "wide") == page.count("svg", "narrow") == page.count("figure") == 6
    for svg in re.findall(r'<svg class="(?:wide|narrow)".*?</svg>', html, flags=re.DOTALL):
        labels = re.search(r'aria-labelledby="(\S+) (\S+)"', svg)
        assert labels is not None
        assert f'<title id="{labels[1]}">' in svg
        assert f'<desc id="{labels[2]}">' in svg
    assert page.count("table") == page.count("caption")
    assert ("html", {"lang": "en"}) in page.tags


def test_the_picture_of_the_layers(tmp_path: Path) -> None:
    page = report(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    # Two plans of ten layers, drawn for two widths, and one sample in the legend.
    assert page.count("g", "tile replaced") == 2 * 2 * 10 + 1
    assert page.count("g", "tile attention") == 2 * 2 * 20 + 1
    assert "<title>hybrid, layer 6: attention replaced by an SSM (Mamba-2), score 0.9" in html
    assert (
        "<title>uniform, layer 1: attention kept</title>" in html or "uniform, layer 1: attention kept, score" in html
    )
    assert "3 of its 10 are the hybrid's too" in page.text
    # Layers 0 and 1 are far below: they must be marked, not flatten the others.
    assert page.count("polygon", "score off") == 2 * 2


def test_a_search_by_replaceability_is_told_as_one(tmp_path: Path) -> None:
    text = report(tmp_path / "skips").text
    assert "Each mark is a set of layers, and what the draft without their attention was worth" in text
    assert "redundancy of each layer" in text
    assert '<dd class="beside">at start 0.830</dd>' in (tmp_path / "skips" / "report.html").read_text(encoding="utf-8")
    fits = align(REPLACE) | {"seconds": 0.2}  # they lay there from the search
    chosen = plan(30, REPLACE) | {"by": "replaceability", "score_kind": "kl with only this layer's attention replaced"}
    text = report(tmp_path / "swaps", {"plan.json": chosen, "align.json": fits}).text
    assert "what the draft with fitted blocks in their place was worth" in text
    html = (tmp_path / "swaps" / "report.html").read_text(encoding="utf-8")
    assert "<dt>Chosen by</dt><dd>replaceability</dd>" in html
    assert '<dd class="beside">blocks fitted 0.210</dd>' in html
    assert "redundancy" not in text.partition("How it was made")[0]
    assert "score of each layer (kl with only this layer's attention replaced); the higher, the sooner" in text
    assert "on documents of 157,696 tokens in 2" in text  # minutes: those of the blocks
    assert "fitted to every attention before the search, which chose among them" in text


def test_a_layer_without_attention_is_neither_kept_nor_replaced(tmp_path: Path) -> None:
    page = report(tmp_path, {"plan.json": plan(30, REPLACE) | {"ssm_layers": [4, 5]}})
    assert page.count("g", "tile ssm") == 2 * 2 * 2 + 1
    assert "10 of 28 attention layers replaced" in page.text


@pytest.mark.parametrize("name", [*EXPECTED, "everything"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    names = EXPECTED if name == "everything" else [name]
    page = report(tmp_path, dict.fromkeys(names))
    # Without a recipe, nobody knows of a fine-tuning.
    known = [each for each in names if name != "everything" or "finetune" not in each]
    assert all(each in page.text for each in known)
    assert page.count("section") == 9
    essential = {"run.json", "distill.json", "finetune.json", "evaluation.json"} & set(names)
    assert ("This run is not finished" in page.text) == bool(essential)


def test_what_the_recipe_turns_off_is_not_missing_and_not_read(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) | {"align": None, "arms": {}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    page = checked(write_report(folder).read_text(encoding="utf-8"))
    assert "cannot show" not in page.text
    assert "The recipe turns this off." in page.text
    assert page.count("svg", "wide") == 5  # align.json of an earlier recipe is still there
    assert page.count("g", "tile replaced") == 2 * 10 + 1


@pytest.mark.parametrize("name", ["plan.json", *EXPECTED])
@pytest.mark.parametrize("content", ["{", '[{"a": 1}]', "\xff"])
def test_a_corrupt_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: str) -> None:
    folder = write_example_run(tmp_path)
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(RadistillError, match=re.escape(str(folder / name))) as error:
        write_report(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": None}, "num_layers: "),
        ({"num_layers": 0}, "num_layers: "),
        ({"replace": "3, 6"}, "replace: "),
        ({"replace": [3, 30]}, r"replace\[1\] is 30, but this model has layers 0 to 29"),
        ({"replace": [-1]}, r"replace\[0\] is -1"),
        ({"replace": [1.5]}, r"replace\.0: "),
        ({"scores": "junk"}, "scores: "),
        ({"search": [{"layers": 3}]}, r"search\.0\."),
        ({"kl": "0.1"}, "kl: "),
        ({"model": None}, "model: "),
    ],
)
def test_a_plan_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_example_run(tmp_path)
    write(folder / "plan.json", plan(30, REPLACE) | changes)
    with pytest.raises(RadistillError, match=message):
        write_report(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RadistillError, match=r"plan\.json: no such file"):
        write_report(tmp_path)
    folder = write_example_run(tmp_path)
    write(folder / "arms/uniform/plan.json", uniform_plan(12, 4))
    with pytest.raises(RadistillError, match="different models"):
        write_report(folder)


def test_any_metric_may_be_null(tmp_path: Path) -> None:
    results = evaluation()
    for key, metrics in results.items():
        if key != "samples":
            results[key] = dict.fromkeys(metrics)
    fits = align(REPLACE)
    fits["layers"] = [dict.fromkeys(fit) | {"layer": fit["layer"], "losses": []} for fit in fits["layers"]]
    losses = distill(1, 0.5)
    for name in ("curve", "evaluations"):
        losses[name] = [dict.fromkeys(row) for row in losses[name]]
    changes = {
        "evaluation.json": results,
        "align.json": fits,
        "distill.json": losses | {"tokens": None, "seconds": None},
        "run.json": {"stages": {"data": {"seconds": None}}},
    }
    assert report(tmp_path, changes).count("section") == 9


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, "text", [], [None, 1], {}, {"a": "b"}, True])
@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("evaluation.json", evaluation(), "hybrid.kl"),
        ("evaluation.json", evaluation(), "base"),
        ("align.json", align(REPLACE), "layers.0.unexplained_after"),
        ("distill.json", distill(1, 0.5), "curve.3.loss"),
        ("distill.json", distill(1, 0.5), "evaluations.0"),
        ("run.json", run(), "stages.data.seconds"),
        ("run.json", run(), "stages.data"),
    ],
)
def test_a_value_of_another_type_is_damage(tmp_path: Path, name: str, content: Any, field: str, junk: Any) -> None:
    content = node = json.loads(json.dumps(content))
    *parents, last = [int(part) if part.isdecimal() else part for part in field.split(".")]
    for parent in parents:
        node = node[parent]
    node[last] = junk
    if isinstance(junk, dict) and last in ("base", "data", 0):
        return  # nothing was measured
    with pytest.raises(RadistillError, match=rf"{name}: ({re.escape(field)}\b|not valid JSON)") as error:
        report(tmp_path, {name: content})
    assert "\n" not in str(error.value)


def test_one_evaluation_is_a_point_on_the_axis_of_the_whole_run(tmp_path: Path) -> None:
    page = report(tmp_path, {"distill.json": distill(0.5, 0.2, evaluations=1), "arms/uniform/distill.json": None})
    held_out = (
        (tmp_path / "report.html").read_text(encoding="utf-8").split('id="heldout-wide-title"')[1].split("</svg>")[0]
    )
    assert held_out.count("mark hybrid") == 1
    assert "curve" not in held_out
    assert "80k" in held_out
    assert "arms/uniform/distill.json" in page.text


def test_values_that_are_not_finite_are_counted_out(tmp_path: Path) -> None:
    losses = distill(1, 0.5)
    losses["curve"][3]["loss"] = None
    losses["curve"][4]["loss"] = None
    assert "2 recorded values are not finite numbers" in report(tmp_path, {"distill.json": losses}).text


@pytest.mark.parametrize("replace", [[], [0], list(range(79)), list(range(80))])
def test_eighty_layers(tmp_path: Path, replace: list[int]) -> None:
    page = report(
        tmp_path,
        {"plan.json": plan(80, replace), "arms/uniform/plan.json": uniform_plan(80, 40), "align.json": align(replace)},
    )
    assert f"{len(replace)} of 80 attention layers replaced" in page.text
    assert page.count("g", "tile replaced") == 2 * (len(replace) + 40) + 1


def test_one_layer(tmp_path: Path) -> None:
    page = report(tmp_path, {"plan.json": plan(1, [0], trials=1), "arms/uniform/plan.json": uniform_plan(1, 1)})
    assert "1 of 1 attention layers replaced" in page.text


@pytest.mark.parametrize("trials", [0, 1])
def test_a_plan_without_a_search(tmp_path: Path, trials: int) -> None:
    changed = plan(30, REPLACE)
    changed["search"] = changed["search"][-1:] * trials
    page = report(tmp_path, {"plan.json": changed})
    assert "made without a search" in page.text
    assert page.count("svg", "wide") == 5


def test_a_draft_that_overflowed_is_not_on_the_scale(tmp_path: Path) -> None:
    changed = plan(30, REPLACE)
    changed["search"][40]["value"] = -1e6
    page = report(tmp_path, {"plan.json": changed})
    assert "1 of 90 trials gave no finite value" in page.text
    assert page.count("rect", "") > 0
    assert "-1,000,000" not in page.text.replace("\N{MINUS SIGN}", "-")


def test_hostile_samples(tmp_path: Path) -> None:
    results = evaluation()
    results["samples"] = [
        {"prompt": "long", "base": "a" * 1_000_000, "hybrid": "a" * 500_000 + "b"},
        {"prompt": "", "base": "", "hybrid": "\x00\x1b[31m ok\r\n"},
        {},
        *({"prompt": f"number {index}", "base": "x"} for index in range(100)),
    ]
    write(write_example_run(tmp_path) / "evaluation.json", results)
    path = write_report(tmp_path)
    page = checked(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 400_000
    assert "departs from the base after 500,000 of 500,001 characters; the first 8,000 are shown" in page.text
    assert "The first 20 of 103 are shown." in page.text
    assert "\x00" not in page.text
    assert "(empty prompt)" in page.text


def test_samples_show_where_they_leave_the_base(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "the same as the base" in page.text
    assert "departs from the base at once" in page.text
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span class="shared">For n = 4 the function returns [0, 1, </span>1, 1, 1, 1' in html


def test_pages_of_nothing_are_told_and_code_is_shown(tmp_path: Path) -> None:
    results = evaluation()
    code = "def f(x):\n        return x\n\n\nf(1)"
    results["samples"] = [
        {"prompt": "user\nWhy?\nassistant\n", "base": code, "hybrid": "\n" * 96, "uniform": "so" + " " * 50 + "what"}
    ]
    write(write_example_run(tmp_path) / "evaluation.json", results)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<span>Why?</span>" in html
    assert code in html
    assert "nothing but white space" in html
    assert "\n[96 line breaks]\n" in html
    assert "so [50 spaces] what" in html


def test_unequal_budgets_are_admitted(tmp_path: Path) -> None:
    page = report(tmp_path, {"arms/uniform/distill.json": distill(8.9, 2.3, steps=60)})
    assert "The budgets differ" in page.text
    assert "same tokens" not in page.text


@pytest.mark.parametrize(
    "change",
    [
        "retraining",
        "trained otherwise",
        "an arm trained otherwise",
        "another plan",
        "other data",
        "not evaluated again",
    ],
)
def test_results_of_an_earlier_state_are_marked(tmp_path: Path, change: str) -> None:
    record = run()
    stages = record["stages"]
    if change == "retraining":
        del stages["distill:hybrid"]
    elif change == "trained otherwise":
        stages["finetune:hybrid"]["inputs"] = {**stages["finetune:hybrid"]["inputs"], "finetune": {"steps": 21}}
    elif change == "an arm trained otherwise":
        stages["distill:uniform"]["inputs"] = {**stages["distill:uniform"]["inputs"], "distill": {"steps": 3}}
    elif change == "another plan":
        stages["convert:hybrid"]["inputs"] = {"replace": [1]}
    elif change == "other data":
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "heldout.jsonl").write_text("{}\n")
    else:
        del stages["evaluate"]
    page = report(tmp_path, {"run.json": record}).text
    assert "These results are out of date." in page
    assert "trains the same hybrid" not in page


def test_a_step_that_was_done_again_with_the_same_inputs_marks_nothing(tmp_path: Path) -> None:
    record = run()
    record["stages"]["distill:hybrid"]["finished"] = "2027-01-01T00:00:00+00:00"
    assert "These results are out of date." not in report(tmp_path, {"run.json": record}).text


def test_it_prints_what_the_steps_were_made_with(tmp_path: Path) -> None:
    """recipe.yaml is of the last command; the hybrid was trained by an earlier one, with other versions."""
    record = run()
    made = {"align": {"steps": 77}, "distill": {"steps": 120}}
    record["stages"]["distill:hybrid"] |= {"recipe": made}
    record["stages"]["distill:uniform"]["recipe"] = {"arms": {"uniform": {"selector": "uniform", "init": "zero"}}}
    record["stages"]["distill:gone"] = {"recipe": {"arms": {"gone": {"by": "redundancy"}}}}
    record["stages"]["finetune:hybrid"]["versions"] = {"torch": "2.11.7"}
    folder = write_example_run(tmp_path)
    write(folder / "run.json", record)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("steps: 120", "steps: 99999")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    page = checked(write_report(folder).read_text(encoding="utf-8")).text
    assert "99999" not in page
    assert "trains the same hybrid" in page
    assert "steps: 120" in page
    assert "init: zero" in page
    assert "gone:" not in page
    assert "2.11.7" in page
    assert "2.13.0" not in page


def test_a_baseline_that_is_fitted_too_is_expected_to_say_so(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("    align: null", "    align: {}")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert "arms/uniform/align.json" in checked(write_report(folder).read_text(encoding="utf-8")).text
    write(folder / "arms/uniform/align.json", align(REPLACE))
    page = checked(write_report(folder).read_text(encoding="utf-8"))
    assert "arms/uniform/align.json" not in page.text
    assert "Only the hybrid had the layer-wise fit" not in page.text


def test_it_reads_what_the_pipeline_writes(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path)
    results = evaluation()
    figures = {name.name: results["hybrid"].get(name.name) for name in fields(Evaluation)} | {"answers": ["27"]}
    results["hybrid"] = Evaluation(**figures).to_json()
    write(folder / "evaluation.json", results)
    Plan.model_validate(plan(30, REPLACE)).save(folder / "plan.json")
    settings = {"model": "m", "data": {"kind": "reasoning-gym"}, "diagnose": {"budget": 10}}
    Recipe.model_validate(settings | {"arms": {"uniform": {"by": "redundancy", "init": "zero", "align": None}}}).save(
        folder / "recipe.yaml"
    )
    page = checked(write_report(folder).read_text(encoding="utf-8"))
    assert "target granite-hybrid" in page.text
    assert "of the arm uniform (2.31)" in page.text
    assert "cannot show" not in page.text
    Recipe.model_validate(
        settings | {"align": None, "convert": {"init": "zero"}, "diagnose": {"budget": 10, "by": "redundancy"}}
    ).save(folder / "recipe.yaml")
    page = checked(write_report(folder).read_text(encoding="utf-8"))
    assert page.count("svg", "wide") == 4
    assert page.count("g", "tile replaced") == 2 * 10 + 1
