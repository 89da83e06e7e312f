"""Figures over one axis: a line for each series, with its marks, intervals where there are any, and its last value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import significant, whole
from radistill.report.svg import Axes, Scale, Size, figure, key, label_heights, line, marker, path, text, value_scale

SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Point:
    """One value.

    Attributes:
        x: where it is, in tokens unless `said` says otherwise.
        value: what it is.
        interval: at 95 %, if it has one.
        said: what a reader who points at it is told; '' is the series' name and both numbers.
        style: where it is not that of its series.
        label: beside it.
    """

    x: float
    value: float
    interval: tuple[float, float] | None = None
    said: str = ""
    style: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A line through points in their order; without marks if it `is_plain`."""

    name: str
    style: str
    shape: str
    points: list[Point]
    is_plain: bool = False


def line_figure(
    identity: str,
    title: str,
    axes: tuple[str, str],
    series: Sequence[Series],
    x: Scale,
    *,
    described: str,
    ticks: Sequence[float] = (),
    highest: float | None = None,
    log_above: float = math.inf,
    legend: bool = True,
    notes: tuple[str, ...] = (),
) -> Figure:
    """Draw series that have points.

    Args:
        identity: prefix of the element ids, unique on the page.
        title: the figure's name.
        axes: what is across and what is up, with their units.
        series: in the order of the legend.
        x: from where to where the horizontal axis goes; where it lies on the page follows from the width.
        described: what a reader who cannot see it should know.
        ticks: values that the horizontal axis names, as far as there is room; none are round ones.
        highest: where the vertical axis ends, from 0; None leaves that to the values, logarithmic if these differ by
            more than `log_above` times.
        legend: whether it has one, and each line its last value at its end.
        notes: sentences for the caption.
    """
    values = [value for one in series for point in one.points for value in (point.value, *(point.interval or ()))]

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 240.0 if size.is_narrow else 300.0
        across = replace(x, start=46.0 if size.is_narrow else 64.0, end=size.width - (44 if size.is_narrow else 56))
        bounds = height - 44, 34
        up = value_scale(values, *bounds, log_above=log_above) if highest is None else Scale(0, highest, *bounds)
        named = ticks[:: math.ceil(len(ticks) / (5 if size.is_narrow else 12))] if ticks else []
        at = named or across.ticks(4 if size.is_narrow else 8)
        y_title = f"{axes[1]}{', log scale' if up.log else ''}"
        elements = Axes(across, up, axes[0], y_title, at, up.ticks(5), [*map(_short, named)] or None).draw()
        ends = label_heights([up(one.points[-1].value) for one in series])
        for place, one in enumerate(series):
            # Beside each other, so that no interval hides another.
            elements += _drawn(one, across, up, shift=(place - (len(series) - 1) / 2) * 4)
            if legend:
                last = one.points[-1]
                elements.append(text(across(last.x) + 8, ends[place] + 4, significant(last.value), f"end {one.style}"))
        return height, elements

    marks = [(key(one.shape, f"mark {one.style}", stroke=f"curve {one.style}"), one.name) for one in series]
    return Figure(figure(identity, title, described, draw), tuple(marks) if legend else (), notes)


def _drawn(series: Series, x: Scale, y: Scale, shift: float) -> list[Markup]:
    style, points = series.style, series.points
    places = [(x(point.x), y(point.value)) for point in points]
    elements = [path(places, f"curve {style}{' plain' if series.is_plain else ''}")] if len(points) > 1 else []
    for point, (px, py) in zip(points, places, strict=True):
        said = point.said or f"{series.name}, {whole(point.x)} tokens: {significant(point.value)}"
        if point.interval is not None:
            low, high = point.interval
            elements.append(line(px + shift, y(low), px + shift, y(high), f"interval {point.style or style}"))
            said += "" if point.said else f", 95 % interval {significant(low)} to {significant(high)}"
        if not series.is_plain or len(points) == 1:
            elements.append(marker(series.shape, px, py, 3.6, f"mark {point.style or style}", said))
        if point.label:
            elements.append(text(px + 8, py - 8, point.label, f"end {point.style or style}"))
    return elements


def _short(tokens: float) -> str:
    return f"{tokens / 1024:g}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,.0f}"
