"""Models side by side on the same examples, and which of their differences are real."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from radistill.errors import RadistillError
from radistill.evaluation.results import SUMMARY, Figures, Row, figures_of, file_name
from radistill.files import read_json, read_rows
from radistill.runs.contents import Content, Number
from radistill.statistics import Difference, holm, mcnemar, paired_bootstrap

LEVEL = 0.05
"""A difference is called real if its p, adjusted for the number of comparisons, is below this."""


class _Example(Content):
    """A row of a task's JSONL."""

    key: str
    correct: bool | None = None
    nats: Annotated[Number, Field(ge=0)] | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None
    group: str | None = None
    finished: bool = True
    prompt: str | list[dict[str, Any]] = ""
    response: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> "_Example":
        if (self.correct is None) == (None in (self.nats, self.bytes, self.tokens)):
            raise ValueError("has neither `correct` alone nor `nats`, `bytes` and `tokens` alone")
        return self


@dataclass(frozen=True)
class Results:
    """What a model has to show.

    Attributes:
        name: as the user gave it.
        settings: by task, those that two evaluations must share.
        rows: by task, the examples.
    """

    name: str
    settings: dict[str, dict[str, Any]]
    rows: dict[str, list[Row]]


@dataclass(frozen=True)
class Line:
    """One task, or one group of its examples, over all models.

    Attributes:
        task: name.
        figures: of each model, on the examples that all of them have; None where it has not done the task.
        differences: of each model but the first to the first; None where one of both has not done the task.
        adjusted: p of each difference after Holm's adjustment; None likewise. Tasks are adjusted together, and the
            groups of each task among themselves, so that a finer table weakens no task.
        group: the group of the task's examples; '' for all of them.
    """

    task: str
    figures: list[Figures | None]
    differences: list[Difference | None]
    adjusted: list[float | None]
    group: str = ""

    def is_real(self, index: int) -> bool:
        """Whether the difference `index` is one that chance does not explain."""
        p = self.adjusted[index]
        return p is not None and p < LEVEL


def read_results(name: str, folder: Path, problems: list[str] | None = None) -> Results:
    """What `run_tasks` has left in a folder.

    Args:
        name: as the user gave it.
        folder: where it lies.
        problems: takes what is wrong with the summary or a task, which is then left out; None raises it.

    Raises:
        RadistillError: if there is nothing, or a file is damaged.
    """
    settings: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[Row]] = {}
    with _left_out(problems):
        summary = read_json(folder / SUMMARY)
        try:
            counts = {task: figures["n"] for task, figures in summary["tasks"].items()}
            settings = {task: dict(figures["settings"]) for task, figures in summary["tasks"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise RadistillError(f"{folder / SUMMARY}: not a summary of tasks; remove it and evaluate again") from None
    for task in list(settings):
        again = ["radistill", "evaluate", str(summary.get("model")), "--tasks", task, "--out", str(folder)]
        with _left_out(problems):
            rows[task] = _rows(folder / f"{file_name(task)}.jsonl", counts[task], f"; first: {shlex.join(again)}")
        if task not in rows:
            del settings[task]
    return Results(name, settings, rows)


@contextmanager
def _left_out(problems: list[str] | None) -> Iterator[None]:
    """Let an error go to `problems`, if somebody reads them."""
    try:
        yield
    except RadistillError as error:
        if problems is None:
            raise
        problems.append(str(error))


def compare_results(models: Sequence[Results], problems: list[str] | None = None) -> list[Line]:
    """Each task that at least one model has done, over the examples that all who did it have in common.

    Args:
        models: the first is the one that the others are compared to.
        problems: takes why a task cannot be compared, which is then left out; None raises it.

    Raises:
        RadistillError: if two models did a task with different settings, or have no example of it in common.
    """
    lines: list[Line] = []
    for task in dict.fromkeys(task for model in models for task in model.rows):
        with _left_out(problems):
            _check_settings(task, models)
            common = _common(task, models)
            lines.append(_line(task, common))
            groups = dict.fromkeys(row["group"] for rows in common if rows for row in rows if row.get("group"))
            if len(groups) > 1:
                lines += (of_groups := [_line(task, _of_group(common, group), group) for group in groups])
                _adjust(of_groups)
    _adjust([line for line in lines if not line.group])
    return lines


def _adjust(lines: Sequence[Line]) -> None:
    found = [
        (line, index, difference.p)
        for line in lines
        for index, difference in enumerate(line.differences)
        if difference is not None
    ]
    for (line, index, _), p in zip(found, holm([p for _, _, p in found]), strict=True):
        line.adjusted[index] = p


def _rows(path: Path, count: int, way_out: str) -> list[Row]:
    rows = [row.given() for _, row in read_rows(path, _Example, way_out=way_out)]
    if len(rows) != count:
        raise RadistillError(f"{path}: has {len(rows)} examples, but {SUMMARY} tells of {count}{way_out}")
    return rows


def _check_settings(task: str, models: Sequence[Results]) -> None:
    done = [model for model in models if task in model.settings]
    for model in done[1:]:
        one, other = done[0].settings[task].get("max_new_tokens"), model.settings[task].get("max_new_tokens")
        if one != other:
            raise RadistillError(
                f"{task}: {done[0].name} had {one} tokens for an answer and {model.name} {other}; "
                "evaluate one of them again with the other's --max-new-tokens"
            )


def _common(task: str, models: Sequence[Results]) -> list[list[Row] | None]:
    """The rows of each model, in one order, without the examples that another model has not seen."""
    by_key = [{row["key"]: row for row in model.rows[task]} if task in model.rows else None for model in models]
    done = [rows for rows in by_key if rows is not None]
    keys = [key for key in done[0] if all(key in rows for rows in done)]
    if len({"nats" in row for rows in done for row in rows.values()}) > 1:
        raise RadistillError(f"{task}: some examples are answered and others only read; evaluate the task again")
    if not keys:
        names = " and ".join(model.name for model in models if task in model.rows)
        raise RadistillError(f"{task}: {names} have no example in common; evaluate them on the same data")
    return [None if rows is None else [rows[key] for key in keys] for rows in by_key]


def _of_group(models: Sequence[list[Row] | None], group: str) -> list[list[Row] | None]:
    return [None if rows is None else [row for row in rows if row.get("group") == group] for rows in models]


def _line(task: str, models: Sequence[list[Row] | None], group: str = "") -> Line:
    first, *others = models
    differences = [None if first is None or rows is None else _difference(first, rows) for rows in others]
    figures = [None if rows is None else figures_of(rows) for rows in models]
    return Line(task, figures, differences, [None] * len(others), group)


def _difference(first: Sequence[Row], second: Sequence[Row]) -> Difference:
    if "nats" in first[0]:
        one, other = ([float(row["nats"]) for row in rows] for rows in (first, second))
        return paired_bootstrap(one, other, [float(row["bytes"]) for row in first])
    return mcnemar([row["correct"] for row in first], [row["correct"] for row in second])
