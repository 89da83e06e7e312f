"""Held-out KL and training loss against training tokens, all hybrids on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import number, significant, whole
from radistill.report.svg import Axes, Scale, Size, figure, key, label_heights, marker, path, text, value_scale
from radistill.runs.contents import records
from radistill.runs.folder import MAIN
from radistill.runs.read import Run

_LOG_ABOVE = 8
_MOST_POINTS = 120
_SHAPES = ("circle", "square", "diamond", "triangle")
_KL = "KL, nats per response token"
_OF_A_STORE = "A lower bound: over the tokens that the stored teacher kept, and the rest as one."


@dataclass(frozen=True)
class _Series:
    name: str
    style: str
    shape: str
    points: list[tuple[float, float]]


def heldout_figure(run: Run) -> Figure | None:
    """Held-out KL in nats per response token, or None where it was never measured."""
    series, dropped = _series(run, "distill", "evaluations", "kl")
    title = f"Held-out KL to the {_teacher(run)}"
    stored = run.main["distill"].get("heldout_kl") == "top-k"
    notes = (_OF_A_STORE,) if stored else ()
    return _curves(run, "heldout", title, _KL, series, dropped, marks=True, notes=notes)


def finetune_figure(run: Run) -> Figure | None:
    """Held-out KL while fine-tuning, in nats per response token: how far from the teacher it leads; None without."""
    series, dropped = _series(run, "finetune", "evaluations", "kl")
    title = f"Held-out KL to the {_teacher(run)} while fine-tuning"
    return _curves(run, "finetune", title, _KL, series, dropped, marks=True, training="finetune")


def loss_figure(run: Run) -> Figure | None:
    """Training loss, or None where no step was recorded; long runs are averaged into at most `_MOST_POINTS` points."""
    series, dropped = _series(run, "distill", "curve", "loss")
    longest = max((len(one.points) for one in series), default=0)
    bucket = -(-longest // _MOST_POINTS)
    series = [_Series(one.name, one.style, one.shape, _averaged(one.points, bucket)) for one in series]
    notes = (f"Each point is the mean of about {bucket} recorded steps.",) if bucket > 1 else ()
    return _curves(
        run,
        "loss",
        "Training loss",
        "loss, mean over response tokens",
        series,
        dropped,
        marks=longest <= 40,
        notes=notes,
    )


def _teacher(run: Run) -> str:
    return "teacher" if run.main.arm is not None and run.main.arm.teacher else "base"


def _series(run: Run, training: str, rows: str, metric: str) -> tuple[list[_Series], int]:
    """The series that have points, and how many points were no finite number."""
    found, dropped = [], 0
    for number_, hybrid in enumerate(run.hybrids):
        points, lost = _points(records(hybrid[training].get(rows)), metric)
        dropped += lost
        if points:
            style = f"arm-{(number_ - 1) % 4}" if number_ else MAIN
            found.append(_Series(hybrid.name, style, _SHAPES[number_ % len(_SHAPES)], points))
    return found, dropped


def _points(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[tuple[float, float]], int]:
    pairs = [(number(row.get("tokens")), number(row.get(metric))) for row in rows]
    points = [(tokens, value) for tokens, value in pairs if tokens is not None and value is not None]
    return sorted(points), len(pairs) - len(points)


def _averaged(points: list[tuple[float, float]], bucket: int) -> list[tuple[float, float]]:
    if bucket <= 1:
        return points
    count = -(-len(points) // bucket)
    cuts = [index * len(points) // count for index in range(count + 1)]
    groups = [points[start:end] for start, end in pairwise(cuts)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _curves(
    run: Run,
    identity: str,
    title: str,
    y_title: str,
    series: list[_Series],
    dropped: int,
    *,
    marks: bool,
    training: str = "distill",
    notes: tuple[str, ...] = (),
) -> Figure | None:
    if not series:
        return None
    values = [value for one in series for _, value in one.points]
    seen = [tokens for one in series for tokens, _ in one.points]
    planned = [number(hybrid[training].get("tokens")) or 0.0 for hybrid in run.hybrids]
    most = max(*seen, *planned)  # both figures and a first point alone then share one axis

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 250.0 if size.is_narrow else 320.0
        x = Scale(0, most or 1.0, 46.0 if size.is_narrow else 64.0, size.width - (44 if size.is_narrow else 56))
        y = value_scale(values, height - 44, 34, log_above=_LOG_ABOVE)
        scale = ", log scale" if y.log else ""
        elements = Axes(
            x, y, "training tokens", y_title + scale, x.ticks(4 if size.is_narrow else 8) if most else [0.0], y.ticks(5)
        ).draw()
        for one, label_y in zip(series, label_heights([y(one.points[-1][1]) for one in series]), strict=True):
            placed = [(x(tokens), y(value)) for tokens, value in one.points]
            if len(placed) > 1:
                elements.append(path(placed, f"curve {one.style}{'' if marks else ' plain'}"))
            if marks or len(placed) == 1:
                for (tokens, value), (px, py) in zip(one.points, placed, strict=True):
                    tooltip = f"{one.name}, {whole(tokens)} tokens: {significant(value)}"
                    elements.append(marker(one.shape, px, py, 3.6, f"mark {one.style}", tooltip))
            elements.append(text(placed[-1][0] + 8, label_y + 4, significant(one.points[-1][1]), f"end {one.style}"))
        return height, elements

    lines = [
        f"{one.name}: {significant(one.points[0][1])} at {whole(one.points[0][0])} tokens, "
        f"{significant(one.points[-1][1])} at {whole(one.points[-1][0])}"
        for one in series
    ]
    if dropped:
        notes = (*notes, f"{dropped} recorded values are not finite numbers and are not shown.")
    legend = tuple((key(one.shape, f"mark {one.style}", stroke=f"curve {one.style}"), one.name) for one in series)
    return Figure(figure(identity, title, "; ".join(lines) + ".", draw), legend, notes)
