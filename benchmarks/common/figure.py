"""Figures as SVG files of their own, for light pages and dark ones."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from radistill.report.svg import Axes, line, marker, path, tag, text, value_scale


def drawing(title: str, elements: Sequence[Markup], width: float, height: float) -> Markup:
    """An SVG file: a headline above `elements`, and the colours of every figure here."""
    above = [tag("style", Markup(_STYLE)), tag("title", title), text(8, 24, title, "head")]
    view = f"0 0 {width} {height}"
    return tag("svg", *above, *elements, xmlns="http://www.w3.org/2000/svg", viewBox=view, role="img")


def curves(arms: dict[str, dict[str, Any]], title: str) -> Markup:
    """Held-out KL of every arm against its end-to-end tokens."""
    width, height, left, right, top = 960, 470, 70, 760, 80
    points = {name: [(p["tokens"], p["kl"]) for p in arm["evaluations"]] for name, arm in arms.items()}
    every = [point for curve in points.values() for point in curve]
    x = value_scale([tokens for tokens, _ in every], left, right)
    y = value_scale([kl for _, kl in every], height - 50, top, log_above=10)
    axes = Axes(x, y, "end-to-end tokens", "held-out KL, nats a token", x.ticks(6), y.ticks(5))
    elements = axes.draw()
    labels: list[float] = []
    for number, (name, curve) in enumerate(sorted(points.items(), key=lambda item: item[1][-1][1], reverse=True)):
        style = f"arm-{number % 5}"
        elements.append(path([(x(tokens), y(kl)) for tokens, kl in curve], style))
        elements += [marker(_SHAPES[number % 4], x(tokens), y(kl), 4, f"mark {style}") for tokens, kl in curve]
        place = max(y(curve[-1][1]) + 4, labels[-1] + 16 if labels else 0)
        labels.append(place)
        elements.append(text(right + 12, place, f"{name}: {curve[-1][1]:.3f}", "label"))
    return drawing(title, elements, width, height)


def series(marks: Sequence[tuple[float, float, float, float]], style: str, radius: float) -> list[Markup]:
    """A line through marks with their intervals; each is a place, a height, and the heights of its interval's ends."""
    return [
        path([(x, y) for x, y, _, _ in marks], style),
        *(line(x, low, x, high, style) for x, _, low, high in marks),
        *(marker("circle", x, y, radius, f"mark {style}") for x, y, _, _ in marks),
    ]


def entry(x: float, y: float, name: str, style: str) -> list[Markup]:
    """A series in the legend."""
    return [text(x, y, name, "label"), marker("circle", x - 10, y - 4, 4, f"mark {style}")]


_SHAPES = ("circle", "square", "diamond", "triangle")
_COLOURS = ("#b35900", "#1f5fa8", "#2d7d46", "#9b4f8e", "#565d67")
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600;font-size:15px}.value{font-size:12px}"
    "path{fill:none;stroke-width:2}.axis{stroke:#8c959f}.grid{stroke:#d0d7de}.bar{fill:#9db7d5}.best{fill:#1f5fa8}"
    + "".join(f".arm-{n}{{stroke:{c}}}.mark.arm-{n}{{stroke:none;fill:{c}}}" for n, c in enumerate(_COLOURS))
    + "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.bar{fill:#3d5a80}.best{fill:#79b8ff}}"
)
