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
        for group, figures in figures_of(model.rows.get("recall", [])).get("groups", {}).items():
            if match := _GROUP.fullmatch(group):
                point = Point(
                    int(match["context"].replace(",", "")),
                    100 * figures["accuracy"],
                    (100 * figures["interval"][0], 100 * figures["interval"][1]),
                )
                found.setdefault(match["kind"], {}).setdefault(model.name, []).append(point)
    drawn = [
        (
            _TITLES.get(kind, kind),
            context_figure(f"recall-{kind}", f"Recall: {kind}", "recalled, %", series, highest=105),
        )
        for kind, series in found.items()
    ]
    return [(title, figure) for title, figure in drawn if figure is not None]
