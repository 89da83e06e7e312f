"""Held-out KL and training loss against training tokens, all hybrids on one axis."""

from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from radistill.report.figures import Figure
from radistill.report.figures.lines import SHAPES, Point, Series, line_figure
from radistill.report.numbers import number, significant, whole
from radistill.report.svg import Scale
from radistill.runs.contents import records
from radistill.runs.folder import MAIN
from radistill.runs.read import Run

_LOG_ABOVE = 8
_MOST_POINTS = 120
_KL = "KL, nats per response token"
_OF_A_STORE = "A lower bound: over the tokens that the stored teacher kept, and the rest as one."


def heldout_figure(run: Run) -> Figure | None:
    """Held-out KL in nats per response token, or None where it was never measured."""
    series, dropped = _series(run, "distill", "evaluations", "kl")
    stored = run.main["distill"].get("heldout_kl") == "top-k"
    title = f"Held-out KL to the {_teacher(run)}"
    return _curves(run, "distill", ("heldout", title, _KL), series, dropped, (_OF_A_STORE,) if stored else ())


def finetune_figure(run: Run) -> Figure | None:
    """Held-out KL while fine-tuning, in nats per response token: how far from the teacher it leads; None without."""
    series, dropped = _series(run, "finetune", "evaluations", "kl")
    title = f"Held-out KL to the {_teacher(run)} while fine-tuning"
    return _curves(run, "finetune", ("finetune", title, _KL), series, dropped)


def loss_figure(run: Run) -> Figure | None:
    """Training loss, or None where no step was recorded; long runs are averaged into at most `_MOST_POINTS` points."""
    series, dropped = _series(run, "distill", "curve", "loss")
    longest = max((len(one.points) for one in series), default=0)
    bucket = -(-longest // _MOST_POINTS)
    series = [replace(one, points=_averaged(one.points, bucket), is_plain=longest > 40) for one in series]
    notes = (f"Each point is the mean of about {bucket} recorded steps.",) if bucket > 1 else ()
    words = ("loss", "Training loss", "loss, mean over response tokens")
    return _curves(run, "distill", words, series, dropped, notes)


def _teacher(run: Run) -> str:
    return "teacher" if run.main.arm is not None and run.main.arm.teacher else "base"


def _series(run: Run, training: str, rows: str, metric: str) -> tuple[list[Series], int]:
    """The series that have points, and how many points were no finite number."""
    found, dropped = [], 0
    for place, hybrid in enumerate(run.hybrids):
        recorded = records(hybrid[training].get(rows))
        pairs = [(number(row.get("tokens")), number(row.get(metric))) for row in recorded]
        points = sorted((tokens, value) for tokens, value in pairs if tokens is not None and value is not None)
        dropped += len(pairs) - len(points)
        if points:
            style = f"arm-{(place - 1) % 4}" if place else MAIN
            shape = SHAPES[place % len(SHAPES)]
            found.append(Series(hybrid.called, style, shape, [Point(*point) for point in points]))
    return found, dropped


def _averaged(points: list[Point], bucket: int) -> list[Point]:
    if bucket <= 1:
        return points
    count = -(-len(points) // bucket)
    cuts = [index * len(points) // count for index in range(count + 1)]
    groups = [points[start:end] for start, end in pairwise(cuts)]
    return [Point(fmean(one.x for one in group), fmean(one.value for one in group)) for group in groups]


def _curves(
    run: Run,
    training: str,
    words: tuple[str, str, str],
    series: list[Series],
    dropped: int,
    notes: tuple[str, ...] = (),
) -> Figure | None:
    """The figure with these `words`: identity, title and what is up; None without series."""
    if not series:
        return None
    planned = [number(hybrid[training].get("tokens")) or 0.0 for hybrid in run.hybrids]
    # All figures, and a first point alone, then share one axis.
    most = max(*(point.x for one in series for point in one.points), *planned)
    if dropped:
        notes = (*notes, f"{dropped} recorded values are not finite numbers and are not shown.")
    identity, title, y_title = words
    return line_figure(
        identity,
        title,
        ("training tokens", y_title),
        series,
        Scale(0, most or 1.0, 0, 1),
        described="; ".join(map(_described, series)) + ".",
        ticks=() if most else (0.0,),
        log_above=_LOG_ABOVE,
        notes=notes,
    )


def _described(series: Series) -> str:
    first, last = series.points[0], series.points[-1]
    return (
        f"{series.name}: {significant(first.value)} at {whole(first.x)} tokens, {significant(last.value)} at "
        f"{whole(last.x)}"
    )
