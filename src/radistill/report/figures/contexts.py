"""Base and hybrid over context length: speed and memory, and recall."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from radistill.evaluation.comparison import Results
from radistill.evaluation.results import figures_of
from radistill.report.figures import Figure
from radistill.report.figures.lines import Point, Series, line_figure
from radistill.report.numbers import integer, number, significant
from radistill.report.svg import Scale
from radistill.runs.contents import mapping, records

_SHAPES = {"base": "square", "hybrid": "circle"}
_MEASURES = (
    ("prefill", "Reading the context", "tokens a second", "prefill_tokens_per_second", 1),
    ("decode", "Decoding after it", "tokens a second", "decode_tokens_per_second", 1),
    ("peak", "Peak memory beyond the weights", "MiB", "peak_bytes", 2**20),
)
_GROUP = re.compile(r"(?P<kind>[a-z-]+) (?P<context>[0-9,]+)")
_TITLES = {"key-value": "One of many names with numbers", "needle": "One number in a text about other things"}


def savings_figures(savings: dict[str, Any]) -> list[tuple[str, Figure]]:
    """Title and figure of each measure that savings.json has."""
    drawn = []
    for name, title, unit, metric, divisor in _MEASURES:
        series: dict[str, dict[int, Point]] = {"base": {}, "hybrid": {}}
        for row in records(savings.get("contexts")):
            for model, points in series.items():
                context, value = integer(row.get("context")), number(mapping(row.get(model)).get(metric))
                if context and value is not None:
                    points[context] = Point(context, value / divisor)
        # From zero, so that a small difference looks small.
        most = max((point.value for points in series.values() for point in points.values()), default=0.0)
        highest = 1.08 * most if most > 0 else None
        if figure := _figure(f"savings-{name}", title, unit, series, highest):
            drawn.append((title, figure))
    return drawn


def recall_figures(results: Sequence[Results]) -> list[tuple[str, Figure]]:
    """Title and figure of each kind that some model has done."""
    found: dict[str, dict[str, dict[int, Point]]] = {}
    for model in results:
        # The task of both kinds, which comes last, stands for the same length asked by itself.
        for task in ("recall-key-value", "recall-needle", "recall"):
            for group, figures in figures_of(model.rows.get(task, [])).get("groups", {}).items():
                if match := _GROUP.fullmatch(group):
                    context, (low, high) = int(match["context"].replace(",", "")), figures["interval"]
                    point = Point(context, 100 * figures["accuracy"], (100 * low, 100 * high))
                    found.setdefault(match["kind"], {}).setdefault(model.name, {})[context] = point
    drawn = []
    for kind, series in found.items():
        if figure := _figure(f"recall-{kind}", f"Recall: {kind}", "recalled, %", series, 105):
            drawn.append((_TITLES.get(kind, kind), figure))
    return drawn


def _figure(
    identity: str, title: str, unit: str, found: Mapping[str, Mapping[int, Point]], highest: float | None
) -> Figure | None:
    """A line for each model that has points, by context; None where none has."""
    series = [
        Series(name, name, _SHAPES.get(name, "diamond"), [points[context] for context in sorted(points)])
        for name, points in found.items()
        if points
    ]
    if not series:
        return None
    contexts = sorted({point.x for one in series for point in one.points})
    ends = (contexts[0], contexts[-1]) if len(contexts) > 1 else (contexts[0] / 2, contexts[0] * 2)
    described = "; ".join(
        f"{one.name}: " + ", ".join(f"{significant(point.value)} at {point.x:,.0f}" for point in one.points)
        for one in series
    )
    return line_figure(
        identity,
        title,
        ("context, tokens", unit),
        series,
        Scale(*ends, 0, 1, log=True),
        described=f"{described}.",
        ticks=contexts,
        highest=highest,
    )
