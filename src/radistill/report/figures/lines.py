"""Base and hybrid over context length: a line each, with intervals where there are any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import number, significant
from radistill.report.svg import Axes, Scale, Size, figure, key, label_heights, line, marker, path, text, value_scale

_SHAPES = {"base": "square", "hybrid": "circle"}


@dataclass(frozen=True)
class Point:
    """One figure at one context length, with its 95 % interval if it has one."""

    context: int
    value: float
    interval: tuple[float, float] | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """All that must lie within the figure."""
        return (self.value, *(self.interval or ()))


def context_figure(
    identity: str,
    title: str,
    y_title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    notes: tuple[str, ...] = (),
    highest: float | None = None,
) -> Figure | None:
    """Draw the series that have points; None where none has.

    Args:
        identity: prefix of the element ids, unique on the page.
        title: the figure's name.
        y_title: what the values are, with their unit.
        series: by `base` and `hybrid`.
        notes: sentences for the caption.
        highest: where the vertical axis ends; None leaves that to the values.
    """
    series = {name: sorted(points, key=lambda point: point.context) for name, points in series.items() if points}
    if not series:
        return None
    contexts = sorted({point.context for points in series.values() for point in points})
    values = [value for points in series.values() for point in points for value in point.values]

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 230.0 if size.is_narrow else 280.0
        left, right = (46.0, size.width - 20) if size.is_narrow else (64.0, size.width - 56)
        x = _context_scale(contexts, left, right)
        bottom = height - 44
        y = value_scale(values, bottom, 34) if highest is None else Scale(0, highest, bottom, 34)
        ticks = _shown(contexts, size)
        elements = Axes(x, y, "context, tokens", y_title, ticks, y.ticks(4), [_short(tick) for tick in ticks]).draw()
        heights = label_heights([y(points[-1].value) for points in series.values()])
        for place, (name, points) in enumerate(series.items()):
            placed = [(x(point.context), y(point.value)) for point in points]
            if len(placed) > 1:
                elements.append(path(placed, f"curve {name}"))
            for point, (px, py) in zip(points, placed, strict=True):
                said = f"{name}, {point.context:,} tokens: {significant(point.value)}"
                if point.interval is not None:
                    # Beside each other, so that neither interval hides the other.
                    ix = px + (place - (len(series) - 1) / 2) * 4
                    elements.append(line(ix, y(point.interval[0]), ix, y(point.interval[1]), f"interval {name}"))
                    said += f", 95 % interval {significant(point.interval[0])} to {significant(point.interval[1])}"
                elements.append(marker(_SHAPES[name], px, py, 3.6, f"mark {name}", said))
            if not size.is_narrow:
                label = significant(points[-1].value)
                elements.append(text(placed[-1][0] + 8, heights[place] + 4, label, f"end {name}"))
        return height, elements

    spoken = [
        f"{name}: " + ", ".join(f"{significant(point.value)} at {point.context:,}" for point in points)
        for name, points in series.items()
    ]
    legend = tuple((key(_SHAPES[name], f"mark {name}", stroke=f"curve {name}"), name) for name in series)
    return Figure(figure(identity, title, "; ".join(spoken) + ".", draw), legend, notes)


def points_of(rows: Sequence[tuple[int, object]]) -> list[Point]:
    """Points of those rows whose value is a number."""
    return [Point(context, found) for context, value in rows if (found := number(value)) is not None]


def _context_scale(contexts: list[int], left: float, right: float) -> Scale:
    if len(contexts) == 1:
        return Scale(contexts[0] / 2, contexts[0] * 2, left, right, log=True)
    return Scale(contexts[0], contexts[-1], left, right, log=True)


def _shown(contexts: list[int], size: Size) -> list[float]:
    """Contexts that have a label; on a narrow page only so many that they do not touch."""
    most = 5 if size.is_narrow else 12
    return [float(context) for context in contexts[:: -(-len(contexts) // most)]]


def _short(context: float) -> str:
    return f"{context / 1024:g}k" if context >= 1024 and context % 1024 == 0 else f"{context:,.0f}"
