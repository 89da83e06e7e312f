"""Rows of a benchmark, from a file or else from the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from radistill import files
from radistill.data.examples import check_unicode
from radistill.errors import RadistillError
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.models.checkpoint import one_line


def read_rows(
    names: tuple[str, ...],
    settings: TaskSettings,
    hub: tuple[str, str | None, str],
    fields: tuple[str, ...],
    problem: Callable[[dict[str, Any]], str | None] = lambda row: None,
) -> list[dict[str, Any]]:
    """The first `settings.limit` rows of a task's data, in their order.

    Args:
        names: those under which `settings.data` may have a file (JSON lines, or one JSON list); the task's own first.
        settings: the files and the limit.
        hub: id, configuration and split to load where there is no file.
        fields: what every row must have.
        problem: why answers to a row cannot be judged; None if they can.

    Raises:
        RadistillError: if the data cannot be read, a row lacks a field, or answers to it cannot be judged.
    """
    task = names[0]
    path = next((settings.data[name] for name in names if name in settings.data), None)
    rows, where = _from_hub(task, *hub) if path is None else (_from_file(path), str(path))
    rows = rows[: settings.limit]
    if not rows:
        raise RadistillError(f"{where}: has no rows")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in fields if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise RadistillError(f"{where}, row {number}: has no {', '.join(missing)}, which {task} needs")
        for name in fields:
            check_unicode(str(row[name]), f"{where}, row {number}: {name}")
        if reason := problem(row):
            raise RadistillError(f"{where}, row {number}: {reason}")
    return rows


def _from_file(path: Path) -> list[Any]:
    rows: list[Any] = []
    try:
        for _, row in files.read_rows(path):
            rows.append(row)
    except RadistillError:
        if rows:
            raise
        return files.read_json(path, list)  # over several lines
    return rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows


def _from_hub(task: str, id: str, configuration: str | None, split: str) -> tuple[list[Any], str]:
    import datasets

    try:
        table = datasets.load_dataset(id, configuration, split=split)
    except Exception as error:  # the library raises many kinds, from network errors to pyarrow's
        raise RadistillError(
            f"{task}: {id} cannot be loaded from the hub ({one_line(error)}); give a file with --data {task}=PATH"
        ) from None
    return list(table), f"{id} ({split})"
