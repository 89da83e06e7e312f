"""Inline SVG by hand: escaped elements, scales with round ticks, and each figure drawn for a wide and a narrow page.

Colours, fonts and dashes live in the page's style sheet, so that one drawing serves light, dark and print. Nothing here
depends on time or chance: the same data give the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from radistill.report.numbers import tick_labels

Child = Markup | str


@dataclass(frozen=True)
class Size:
    """A page width to draw for, in user units (CSS pixels at scale one)."""

    name: str
    width: float

    @property
    def is_narrow(self) -> bool:
        return self.name == "narrow"


WIDE = Size("wide", 960)
NARROW = Size("narrow", 358)


def tag(name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """An SVG element. `class_` and `stroke_width` become `class` and `stroke-width`; None leaves an attribute out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, Markup("").join(map(escape, children)), Markup(name))


def figure(identity: str, title: str, description: str, draw: Callable[[Size], tuple[float, list[Markup]]]) -> Markup:
    """Draw a figure for wide and for narrow pages; the style sheet shows one of the two.

    Args:
        identity: prefix of the element ids, unique on the page.
        title: the figure's name.
        description: what a reader who cannot see it should know.
        draw: gives the height and the elements for a size.
    """
    drawings = []
    for size in (WIDE, NARROW):
        height, elements = draw(size)
        prefix = f"{identity}-{size.name}"
        drawings.append(
            tag(
                "svg",
                tag("title", title, id=f"{prefix}-title"),
                tag("desc", description, id=f"{prefix}-desc"),
                *elements,
                class_=size.name,
                viewBox=f"0 0 {size.width:g} {height:g}",
                role="img",
                aria_labelledby=f"{prefix}-title {prefix}-desc",
            )
        )
    return Markup("").join(drawings)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text; `anchor` is start, middle or end."""
    return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through `points`."""
    return tag("path", d="M" + "L".join(f"{_text(x)} {_text(y)}" for x, y in points), class_=class_)


def marker(shape: str, x: float, y: float, radius: float, class_: str, tooltip: str = "") -> Markup:
    """A mark that is told apart by its shape too: circle, square, diamond, triangle or low (pointing down)."""
    children = [tag("title", tooltip)] if tooltip else []
    if shape == "circle":
        return tag("circle", *children, cx=x, cy=y, r=radius, class_=class_)
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "low": [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    }[shape]
    points = " ".join(f"{_text(x + radius * dx)},{_text(y + radius * dy)}" for dx, dy in corners)
    return tag("polygon", *children, points=points, class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps the values `low` to `high` to the coordinates `start` to `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the scale, at least two where the scale allows it."""
        if not self.log:
            return _linear_ticks(self.low, self.high, count)
        top = min(math.ceil(math.log10(self.high)), 308)  # where floats end
        decades = range(math.floor(math.log10(self.low)), top + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in values if self.low <= value <= self.high * (1 + 1e-9)]
            if len(inside) >= 3:
                return inside[:: math.ceil(len(inside) / (2 * count))]
        return _linear_ticks(self.low, self.high, count)


def value_scale(values: Sequence[float], start: float, end: float, *, log_above: float = math.inf) -> Scale:
    """A scale with some air around `values`, from zero where they are near it.

    Logarithmic if all are positive and the largest is more than `log_above` times the smallest.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > log_above:
        return Scale(low / 1.25, high * 1.25, start, end, log=True)
    if low >= 0 and high > 0 and (low < 0.6 * high or low == high):
        return Scale(0, high * 1.08, start, end)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, end)


@dataclass(frozen=True)
class Axes:
    """A plot area: left, top, right and bottom in user units, and what its axes say.

    `x_labels` replaces the plain numbers at `x_ticks`.
    """

    x: Scale
    y: Scale
    x_title: str
    y_title: str
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_labels: Sequence[str] | None = None

    def draw(self) -> list[Markup]:
        """Grid, tick labels and titles; the vertical axis has its title above it, so that nobody tilts their head."""
        elements = [text(self.x.start, self.y.end - 14, self.y_title, "axis-title")]
        # On a logarithmic axis 0.1 and 10 stand for themselves; on a linear one, equal decimals line up.
        for value, label in zip(self.y_ticks, _labels(self.y, self.y_ticks), strict=True):
            y = self.y(value)
            elements += [
                line(self.x.start, y, self.x.end, y, "grid"),
                text(self.x.start - 7, y + 4, label, "tick", "end"),
            ]
        elements.append(line(self.x.start, self.y.start, self.x.end, self.y.start, "axis"))
        x_labels = tick_labels(self.x_ticks) if self.x_labels is None else self.x_labels
        for value, label in zip(self.x_ticks, x_labels, strict=True):
            x = self.x(value)
            elements += [
                line(x, self.y.start, x, self.y.start + 4, "axis"),
                text(x, self.y.start + 18, label, "tick", "middle"),
            ]
        elements.append(text(self.x.end, self.y.start + 36, self.x_title, "axis-title", "end"))
        return elements


def key(shape: str, class_: str, *, stroke: str | None = None) -> Markup:
    """The sample of a legend entry: a mark, on a piece of line where `stroke` names its class."""
    elements = [line(1, 7, 27, 7, stroke)] if stroke else []
    elements.append(marker(shape, 14, 7, 4, class_))
    return tag("svg", *elements, class_="key", viewBox="0 0 28 14", aria_hidden="true")


def label_heights(wanted: list[float], apart: float = 15.0) -> list[float]:
    """Heights for the labels at the lines' ends, moved apart where two would overlap."""
    if len(wanted) == 2 and abs(wanted[0] - wanted[1]) < apart:
        middle = sum(wanted) / 2
        shift = apart / 2 if wanted[0] >= wanted[1] else -apart / 2
        return [middle + shift, middle - shift]
    return wanted


def _labels(scale: Scale, values: Sequence[float]) -> list[str]:
    if scale.log:
        return [label for value in values for label in tick_labels([value])]
    return tick_labels(values)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
