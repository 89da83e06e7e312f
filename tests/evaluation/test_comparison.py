"""Models side by side: which examples count, and when a difference is called real."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from radistill.errors import RadistillError
from radistill.evaluation.comparison import Results, compare_results, read_results
from radistill.evaluation.places import Subject, results_of, subjects_of
from radistill.report.task_table import comparison_table, task_table
from small_run import write_plan


def answers(right: Sequence[bool], groups: Sequence[str] | None = None, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"key": f"k{number}", "correct": value, "group": groups[number - first] if groups else None}
        for number, value in enumerate(right, start=first)
    ]


def results(name: str, limit: int = 512, **tasks: list[dict[str, Any]]) -> Results:
    return Results(name, {task: {"max_new_tokens": limit} for task in tasks}, dict(tasks))


def test_a_real_difference_and_one_that_is_not() -> None:
    base = results("base", gsm8k=answers([True] * 20 + [False] * 20))
    worse = results("worse", gsm8k=answers([True] * 5 + [False] * 35))
    same = results("same", gsm8k=answers([True] * 18 + [False] * 20 + [True] * 2))
    [line] = compare_results([base, worse, same])
    assert [figures["correct"] for figures in line.figures if figures] == [20, 5, 20]
    first, second = line.differences
    assert first is not None
    assert second is not None
    assert (first.only_first, first.only_second, first.n) == (15, 0, 40)
    assert first.p == pytest.approx(2 / 2**15)
    assert line.is_real(0)
    assert (second.only_first, second.only_second) == (2, 2)
    assert not line.is_real(1)


def test_many_comparisons_are_adjusted_for() -> None:
    """p = 0.016 is something by itself, and nothing among eight."""
    base = {f"t{number}": answers([True] * 7 + [False] * 3) for number in range(8)}
    other = {f"t{number}": answers([number > 0] * 7 + [False] * 3) for number in range(8)}
    lines = compare_results([results("a", **base), results("b", **other)])
    assert lines[0].differences[0] is not None
    assert lines[0].differences[0].p == pytest.approx(2 / 2**7)
    assert lines[0].adjusted == [pytest.approx(8 * 2 / 2**7)]
    assert not any(line.is_real(0) for line in lines)
    assert compare_results([results("a", t=base["t0"]), results("b", t=other["t0"])])[0].is_real(0)


def test_only_examples_that_all_have_are_compared() -> None:
    [line] = compare_results([results("a", t=answers([True] * 10)), results("b", t=answers([False] * 10, first=4))])
    assert [figures["n"] for figures in line.figures if figures] == [6, 6]
    with pytest.raises(RadistillError, match="t: a and b have no example in common"):
        compare_results([results("a", t=answers([True])), results("b", t=answers([True], first=9))])


def test_tasks_that_one_model_has_not_done_are_shown_for_the_others() -> None:
    lines = compare_results([results("a", t=answers([True])), results("b", u=answers([True, False]))])
    assert [(line.task, [f and f["n"] for f in line.figures], line.differences) for line in lines] == [
        ("t", [1, None], [None]),
        ("u", [None, 2], [None]),
    ]


def test_groups_have_lines_of_their_own() -> None:
    groups = ["short"] * 5 + ["long"] * 5
    lines = compare_results(
        [results("a", t=answers([True] * 10, groups)), results("b", t=answers([True] * 5 + [False] * 5, groups))]
    )
    assert [(line.task, line.group, line.figures[1] and line.figures[1]["correct"]) for line in lines] == [
        ("t", "", 5),
        ("t", "short", 5),
        ("t", "long", 0),
    ]


def test_continuous_figures_are_bootstrapped() -> None:
    def texts(factor: float) -> list[dict[str, Any]]:
        return [
            {"key": str(n), "nats": factor * (50 + n % 7), "bytes": 100 + n, "tokens": 30 + n % 3} for n in range(40)
        ]

    [line] = compare_results([results("a", p=texts(1.0)), results("b", p=texts(1.1)), results("c", p=texts(1.0))])
    assert line.is_real(0)
    assert not line.is_real(1)
    assert line.differences[0] is not None
    low, high = line.differences[0].interval
    assert 0 < low < line.differences[0].difference < high


def test_answers_of_different_lengths_are_not_compared() -> None:
    with pytest.raises(RadistillError, match=r"t: a had 512 tokens for an answer and b 256; .* --max-new-tokens"):
        compare_results([results("a", t=answers([True])), results("b", 256, t=answers([True]))])


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    figures = {"n": len(rows), "settings": {"max_new_tokens": 512}}
    (folder / "tasks.json").write_text(json.dumps({"model": "a model", "tasks": {"svamp": figures}}))
    (folder / "svamp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_results_are_read_from_files(tmp_path: Path) -> None:
    rows = answers([True, False])
    found = read_results("m", written(tmp_path / "good", rows))
    assert found == results("m", svamp=rows)
    bad = written(tmp_path / "bad", [])
    junk = ['{"key": "k"}', '{"key": 1, "correct": true}', '{"key": "k", "correct": "yes"}', "3"]
    junk += ['{"key": "k", "nats": 1.0, "bytes": 0, "tokens": 1}', '{"key": "k", "nats": NaN, "bytes": 1, "tokens": 1}']
    cut = json.dumps(rows[0]) + "\n"
    contents = [(content, ", line 1: .*") for content in ["{", *(f"{row}\n" for row in junk)]]
    contents += [(cut, ": has 1 examples, but tasks.json tells of 0"), (None, ": no such file")]
    again = re.escape(f"; first: radistill evaluate 'a model' --tasks svamp --out {bad}")
    for content, message in contents:
        (bad / "svamp.jsonl").unlink() if content is None else (bad / "svamp.jsonl").write_text(content)
        with pytest.raises(RadistillError, match=rf"svamp\.jsonl{message}.*{again}$"):
            read_results("m", bad)
        problems: list[str] = []
        assert read_results("m", bad, problems) == results("m")
        assert len(problems) == 1
    (bad / "tasks.json").write_text('{"tasks": {"svamp": 3}}')
    with pytest.raises(RadistillError, match=r"tasks\.json: not a summary of tasks"):
        read_results("m", bad)


def test_where_results_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert subjects_of("org/model") == [Subject("org/model", "org/model", Path("evaluations/org-model"))]
    assert subjects_of("org/model", Path("x"))[0].folder == Path("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(RadistillError, match="run/student: this run has no student there yet"):
        subjects_of("run")
    (run / "student").mkdir()
    (run / "student" / "config.json").write_text("{}")
    with pytest.raises(RadistillError, match=r"run/plan\.json"):
        subjects_of("run")
    write_plan(run / "plan.json", "the/base")
    assert subjects_of("run") == [
        Subject("base", "the/base", Path("run/tasks/base")),
        Subject("hybrid", "run/student", Path("run/tasks/hybrid")),
    ]
    with pytest.raises(RadistillError, match=r"run: has no results of tasks .*first: radistill evaluate run --tasks"):
        results_of("run")
    written(run / "tasks" / "hybrid", [])
    with pytest.raises(RadistillError, match=r"run: .*base/tasks\.json is not there.* radistill evaluate run --tasks"):
        results_of("run", alone=True)
    assert results_of("run") == {"hybrid": Path("run/tasks/hybrid")}
    assert results_of("run/tasks/hybrid") == {"run/tasks/hybrid": Path("run/tasks/hybrid")}
    for name in ("base", "other"):
        written(run / "tasks" / name, [])
    assert list(results_of("run", alone=True)) == ["base", "hybrid", "other"]
    (run / "arms" / "other" / "student").mkdir(parents=True)
    (run / "arms" / "other" / "student" / "config.json").write_text("{}")
    assert [subject.name for subject in subjects_of("run", arms=True)] == ["base", "hybrid", "other"]


def shown(table: Any) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_table_says_which_differences_are_real() -> None:
    base = results("base", gsm8k=answers([True] * 20 + [False] * 20))
    worse = results("worse", gsm8k=answers([True] * 5 + [False] * 35))
    text = shown(comparison_table(["base", "worse"], compare_results([base, worse])))
    assert "50.0 %" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "+0 −15" in text
    assert ": real" in text
    assert "Holm" in text
    assert "not told apart" in shown(comparison_table(["base", "base2"], compare_results([base, base])))


def test_the_table_of_one_model_has_intervals_and_unfinished_answers() -> None:
    figures = {"n": 40, "correct": 20, "accuracy": 0.5, "interval": [0.352, 0.648], "unfinished": 3}
    predicted = {"n": 7, "nats_per_byte": 0.71, "perplexity": 12.3, "bytes": 100, "tokens": 30}
    text = shown(task_table({"gsm8k": figures | {"groups": {"short": figures}}, "perplexity": predicted}))
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    for part in ("gsm8k", "50.0 %", "35.2 % to 64.8 %", "  short", "0.710 nats/byte", "perplexity 12.3"):
        assert part in text
