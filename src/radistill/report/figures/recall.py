"""Recall over context length, one figure for each kind of text."""

import re
from collections.abc import Sequence

from radistill.evaluation.comparison import Results
from radistill.evaluation.figures import figures_of
from radistill.report.figures import Figure
from radistill.report.figures.lines import Point, context_figure

_GROUP = re.compile(r"(?P<kind>[a-z-]+) (?P<context>[0-9,]+)")
_TITLES = {
    "key-value": "One of many names with numbers",
    "needle": "One number in a text about other things",
}


def recall_figures(results: Sequence[Results]) -> list[tuple[str, Figure]]:
    """Title and figure of each kind that some model has done."""
    found: dict[str, dict[str, list[Point]]] = {}
    for model in results:
        for task in ("recall-key-value", "recall-needle", "recall"):
            for group, figures in figures_of(model.rows.get(task, [])).get("groups", {}).items():
                if match := _GROUP.fullmatch(group):
                    context, (low, high) = int(match["context"].replace(",", "")), figures["interval"]
                    point = Point(context, 100 * figures["accuracy"], (100 * low, 100 * high))
                    points = found.setdefault(match["kind"], {}).setdefault(model.name, [])
                    # The task of both kinds, which comes last, stands for the same length asked by itself.
                    points[:] = sorted(
                        (*(one for one in points if one.context != context), point), key=lambda one: one.context
                    )
    drawn = [
        (
            _TITLES.get(kind, kind),
            context_figure(f"recall-{kind}", f"Recall: {kind}", "recalled, %", series, highest=105),
        )
        for kind, series in found.items()
    ]
    return [(title, figure) for title, figure in drawn if figure is not None]
