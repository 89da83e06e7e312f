"""What a person sees while a job runs: progress bars and notes, on standard error, so that output can be piped."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from radistill.processes import is_main
from radistill.texts import readable


class _Console(Console):
    """Shows text as it is, because it may come from any file: without markup, and only what `readable` lets through."""

    def __init__(self, stderr: bool = False, quiet: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            renderable = readable(renderable)
        elif isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = readable(renderable.plain)
        return super().render(renderable, options)


# Of several processes that run one command, one speaks.
console = _Console(stderr=True, quiet=not is_main())


def note(message: str) -> None:
    """Print one line about what was decided or derived, and why."""
    console.print(message, soft_wrap=True)


def show(renderable: RenderableType, widest: int | None = None) -> None:
    """Print on standard output what a command was asked for, at most `widest` columns wide."""
    output = _Console()
    output.print(renderable, width=None if widest is None else min(output.width, widest))


@contextmanager
def progress(description: str, total: int, unit: str = "", done: int = 0) -> Iterator[Callable[..., None]]:
    """Show a progress bar over `total` steps, `done` of which an earlier run has finished.

    Yields a function `advance(steps=1, status="")`; `status` is a short text such as "best 0.91". Without a terminal,
    only the finished bar is printed, so that logs stay readable.
    """
    # In a narrow terminal the bar gives way first, then the status goes on in a second line: numbers are never cut.
    # In a log, which has no width, the finished bar is one line.
    shown = console if console.is_terminal else _Console(stderr=True, quiet=console.quiet, width=1000)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=min(40, max(5, console.width - 80))),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[status]}", markup=False, table_column=Column(overflow="fold")),
    )
    with Progress(*columns, console=shown) as bar:
        task = bar.add_task(description, total=total, completed=done, status="")

        def advance(steps: int = 1, status: str | None = None) -> None:
            bar.advance(task, steps)
            if status is not None:
                bar.update(task, status=status)

        yield advance


def table(caption: str, *headings: str) -> Table:
    """A table that is told apart by space alone: the first column on the left, the others on the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for heading in headings[:1]:
        made.add_column(heading, overflow="fold")
    for heading in headings[1:]:
        made.add_column(heading, justify="right", no_wrap=True)
    return made
