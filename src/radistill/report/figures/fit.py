"""The layer-wise fit: how much of each attention's output its replacement leaves unexplained, before and after."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import percent, significant
from radistill.report.svg import Axes, Scale, Size, figure, key, line, marker, tag, text, value_scale
from radistill.runs.read import Run

_LOG_ABOVE = 30


@dataclass(frozen=True)
class Fit:
    """One fitted block; shares of variance that may be missing and may exceed one."""

    layer: int
    before: float | None
    after: float | None


def fit_rows(run: Run) -> list[dict[str, Any]]:
    """What was noted of the fit of each layer, in their order."""
    return sorted(run.main["align"].get("layers", []), key=lambda row: int(row["layer"]))


def fit_figure(run: Run) -> Figure | None:
    """A dumbbell a layer, or None where nothing was fitted."""
    fits = [Fit(row["layer"], row.get("unexplained_before"), row.get("unexplained_after")) for row in fit_rows(run)]
    values = [value for fit in fits for value in (fit.before, fit.after) if value is not None]
    if not values:
        return None

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 240.0 if size.is_narrow else 300.0
        left = 46.0 if size.is_narrow else 64.0
        step = min((size.width - left - 8) / len(fits), 88.0)
        x = Scale(-0.5, len(fits) - 0.5, left, left + step * len(fits))
        wide = min(values) > 0 and max(values) > _LOG_ABOVE * min(values)
        y = value_scale(values if wide else [0.0, *values], height - 44, 34, log_above=_LOG_ABOVE)
        every = max(1, round(22 / step + 0.49))
        elements = Axes(x, y, "layer", f"unexplained variance{', log scale' if y.log else ''}", [], y.ticks(5)).draw()
        radius = max(2.2, min(5.0, step / 4))
        for position, fit in enumerate(fits):
            centre = x(position)
            if position % every == 0:
                elements.append(text(centre, y.start + 18, str(fit.layer), "tick", "middle"))
            elements.append(tag("g", *_dumbbell(fit, centre, y, radius)))
        return height, elements

    falls = [fit.after / fit.before for fit in fits if fit.before and fit.after is not None]
    note = (
        "Share of the variance of the attention's output that the new block leaves unexplained: "
        "0 is a perfect fit; a block that puts out zero leaves about 1."
    )
    described = f"{len(fits)} layers"
    if falls:
        described += (
            f"; the fit leaves between {percent(min(falls), 0)} and {percent(max(falls), 0)} of what was unexplained"
        )
    return Figure(
        figure("fit", "Unexplained variance per layer before and after the fit", f"{described}.", draw),
        ((key("circle", "before"), "before the fit"), (key("circle", "after"), "after the fit")),
        (note,),
    )


def _dumbbell(fit: Fit, x: float, y: Scale, radius: float) -> list[Markup]:
    elements = [
        tag("title", f"layer {fit.layer}: {significant(fit.before)} before, {significant(fit.after)} after the fit")
    ]
    if fit.before is not None and fit.after is not None:
        elements.append(line(x, y(fit.before), x, y(fit.after), "dumbbell"))
    if fit.before is not None:
        elements.append(marker("circle", x, y(fit.before), radius, "before"))
    if fit.after is not None:
        elements.append(marker("circle", x, y(fit.after), radius, "after"))
    return elements
