"""Tables of tasks for a terminal: the figures of one model, and several models side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from radistill.console import table
from radistill.evaluation.comparison import LEVEL, Line
from radistill.report.numbers import EN_DASH, MINUS, percent, significant
from radistill.report.tasks import change, figure


def task_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """What `run_tasks` returns; groups of a task stand below it."""
    caption = "Accuracy with its 95 % Wilson interval. Unfinished answers were cut at the limit of tokens."
    made = table(caption, "task", "figure", "95 %", "examples", "unfinished")
    for task, of_task in figures.items():
        groups = {f"  {group}": line for group, line in of_task.get("groups", {}).items()}
        for name, line in {task: of_task, **groups}.items():
            unfinished = f"{line['unfinished']:,}" if "unfinished" in line else EN_DASH
            made.add_row(Text(name), figure(line), _interval(line), f"{line['n']:,}", unfinished)
    return made


def comparison_table(names: Sequence[str], lines: Sequence[Line]) -> Table:
    """What `compare_results` returns: the figure of each model, and below it what sets it apart from the first."""
    made = table(
        f"Each model against {names[0]}, on the same examples: +a {MINUS}b are those that only one of both has right "
        "(McNemar's exact test); nats a byte are bootstrapped over the texts. A difference is real if its p is below "
        f"{LEVEL}, adjusted (Holm) for the number of tasks and models, and within a task for that of its groups.",
        *("task", "n"),
    )
    for name in names:
        made.add_column(Text(name, overflow="fold"), justify="right")
    for line in lines:
        n = next(figures["n"] for figures in line.figures if figures is not None)
        first, *others = [_cell(figures) for figures in line.figures]
        cells = [f"{cell}{_apart(line, index)}" for index, cell in enumerate(others)]
        made.add_row(Text(f"  {line.group}" if line.group else line.task), f"{n:,}", first, *cells)
    return made


def _interval(figures: Mapping[str, Any]) -> str:
    if "interval" in figures:
        low, high = figures["interval"]
        return f"{percent(low)} to {percent(high)}"
    return f"perplexity {significant(figures['perplexity'])}" if "perplexity" in figures else EN_DASH


def _cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return EN_DASH
    unfinished = f"\n{figures['unfinished']:,} unfinished" if figures.get("unfinished") else ""
    return f"{figure(figures)}\n({_interval(figures)}){unfinished}"


def _apart(line: Line, index: int) -> str:
    difference, p = line.differences[index], line.adjusted[index]
    if difference is None or p is None:
        return ""
    verdict = "real" if line.is_real(index) else "not told apart"
    return f"\n{change(difference)}\np {significant(p, 2)}: {verdict}"
