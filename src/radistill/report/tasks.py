"""Tasks in the report: base and hybrid on the same examples, which differences are real, and what they answered."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from radistill.evaluation.comparison import Line, Results, compare_results
from radistill.evaluation.results import Row
from radistill.report.numbers import EN_DASH, MINUS, interval, percent, significant
from radistill.report.samples import Sample, sample_of
from radistill.statistics import Difference

_SAMPLES = 2
_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class TaskRow:
    """A task, or a group of its examples, as text.

    Attributes:
        cells: for each model its figure and what limits it; None where it has not done the task.
        difference: of the hybrid to the base, with its p; '' where one of both has not done the task.
        verdict: `real gain`, `real loss` or `not told apart`; '' likewise.
    """

    name: str
    is_group: bool
    n: str
    cells: list[tuple[str, list[str]] | None]
    difference: str
    verdict: str


def task_rows(results: Sequence[Results], problems: list[str] | None = None) -> list[TaskRow]:
    """The table of tasks; `problems` takes why one of them is not in it, None raises it."""
    return [_row(line) for line in compare_results(results, problems)]


def task_sentence(rows: Sequence[TaskRow]) -> str:
    """What the table comes to, for the top of the page; '' where no task was done by both."""
    parts = []
    for row in rows:
        # Each figure with the first of what limits it: `85.0 % (75.6–91.2)`.
        shown = [f"{cell[0]} ({cell[1][0]})" for cell in row.cells[:2] if cell is not None]
        if row.verdict and not row.is_group and len(shown) == 2:
            parts.append(f"{row.name} {shown[1]}, base {shown[0]}: {row.verdict}")
    return f"On tasks: {'; '.join(parts)}." if parts else ""


def task_settings(results: Sequence[Results]) -> list[tuple[str, str]]:
    """How each task was run, in words."""
    return [(task, _settings_words(of_task)) for task, of_task in _settings(results).items()]


def task_commands(run: str, results: Sequence[Results]) -> list[str]:
    """For each task, the command that evaluates it in the same way."""
    return [
        shlex.join(["radistill", "evaluate", run, "--tasks", task, *_options(task, settings)])
        for task, settings in _settings(results).items()
    ]


def _settings(results: Sequence[Results]) -> dict[str, Mapping[str, Any]]:
    """Settings by task, of the first model that has done it."""
    settings: dict[str, Mapping[str, Any]] = {}
    for model in results:
        settings = {**model.settings, **settings}
    return settings


def _options(task: str, settings: Mapping[str, Any]) -> list[str]:
    options = [] if settings.get("data") is None else ["--data", f"{task}={settings['data']}"]
    for name in ("limit", "contexts", "max_new_tokens", "batch_size", "seed"):
        value = settings.get(name)
        if value is not None:
            words = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            options += [f"--{name.replace('_', '-')}", words]
    return options


def task_samples(results: Sequence[Results]) -> list[Sample]:
    """The first examples of each task that is answered in words, as all models answered them."""
    found = []
    for task in results[0].rows if results else ():
        by_key = [{row["key"]: row for row in model.rows.get(task, [])} for model in results]
        common = [key for key in by_key[0] if all(key in rows and "response" in rows[key] for rows in by_key)]
        found += [_sample(results, [rows[key] for rows in by_key], task) for key in common[:_SAMPLES]]
    return found


def _row(line: Line) -> TaskRow:
    name = line.group or line.task
    n = next(figures["n"] for figures in line.figures if figures is not None)
    cells = [None if figures is None else _cell(figures) for figures in line.figures]
    difference = line.differences[0] if line.differences else None
    if difference is None or line.adjusted[0] is None:
        return TaskRow(name, bool(line.group), f"{n:,}", cells, "", "")
    # Fewer nats are better; more right answers are.
    is_better = difference.difference < 0 if difference.only_first is None else difference.difference > 0
    verdict = ("real gain" if is_better else "real loss") if line.is_real(0) else "not told apart"
    said = f"{change(difference)}, p{_NBSP}{significant(line.adjusted[0], 2)}"
    return TaskRow(name, bool(line.group), f"{n:,}", cells, said, verdict)


def change(difference: Difference) -> str:
    """What sets a model apart from the first: examples that only one of both has right, or nats a byte."""
    if difference.only_first is None:
        return f"{'+' if difference.difference >= 0 else MINUS}{significant(abs(difference.difference))} nats/byte"
    return f"+{difference.only_second} {MINUS}{difference.only_first}"


def figure(figures: Mapping[str, Any]) -> str:
    """The figure of a task or of a group; a dash where it has no examples."""
    if "accuracy" in figures:
        return percent(figures["accuracy"])
    return f"{significant(figures['nats_per_byte'])} nats/byte" if "nats_per_byte" in figures else EN_DASH


def _cell(figures: Mapping[str, Any]) -> tuple[str, list[str]]:
    if "accuracy" not in figures:
        return figure(figures), [f"perplexity {significant(figures['perplexity'])}"]
    unfinished = [f"{figures['unfinished']:,} unfinished"] if figures["unfinished"] else []
    return figure(figures), [interval(figures["interval"], 1), *unfinished]


def _settings_words(settings: Mapping[str, Any]) -> str:
    longest = settings.get("max_new_tokens")
    words = [f"answers of at most {longest} tokens"] if longest is not None else []
    words += [f"{name.replace('_', ' ')} {settings[name]}" for name in ("batch_size", "seed") if name in settings]
    if settings.get("data") is not None:
        digest = f" (SHA-256 {str(settings['data_sha256'])[:12]}…)" if settings.get("data_sha256") else ""
        words.append(f"data {settings['data']}{digest}")
    return ", ".join(words)


def _sample(results: Sequence[Results], rows: Sequence[Row], task: str) -> Sample:
    answers = {model.name: str(row["response"]) for model, row in zip(results, rows, strict=True)}
    sample = sample_of({"prompt": _prompt(rows[0]), **answers})
    marked = [
        replace(answer, remark=f"{_verdict(row)}; {answer.remark}")
        for answer, row in zip(sample.answers, rows, strict=True)
    ]
    return replace(sample, first_line=f"{task}: {sample.first_line}", answers=tuple(marked))


def _prompt(row: Row) -> str:
    prompt = row.get("prompt", "")
    if isinstance(prompt, list):
        return "\n\n".join(str(turn.get("content", "")) for turn in prompt if isinstance(turn, dict))
    return str(prompt)


def _verdict(row: Row) -> str:
    return ("right" if row["correct"] else "wrong") + ("" if row.get("finished", True) else ", unfinished")
