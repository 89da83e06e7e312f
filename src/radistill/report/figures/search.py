"""The search: what each judged set was worth, and the best found so far."""

from dataclasses import dataclass

from markupsafe import Markup

from radistill.diagnosis.plan import SearchStep
from radistill.report.figures import Figure
from radistill.report.figures.lines import SHAPES
from radistill.report.numbers import layer_list, significant
from radistill.report.svg import Axes, Scale, Size, figure, key, marker, path, value_scale
from radistill.runs.read import Run

# What a search records for a draft whose logits overflow: as bad as can be, and off every scale.
_FAILED = -1e6


@dataclass(frozen=True)
class _Trial:
    position: int
    layers: list[int]
    value: float
    kind: str


def search_figure(run: Run) -> Figure | None:
    """Objective against trial, or None where fewer than two sets were judged."""
    rows, replaced = run.plan.search, run.plan.replace
    trials = [trial for position, row in enumerate(rows) if (trial := _trial(position, row, len(replaced))) is not None]
    if len(trials) < 2:
        return None
    objective = str(run.plan.objective["name"])
    kinds = dict.fromkeys(trial.kind for trial in trials)  # at most three
    looks = {kind: (SHAPES[place], f"trial kind-{place}") for place, kind in enumerate(kinds)}
    complete = [trial for trial in trials if len(trial.layers) == len(replaced)]
    best = _best_so_far(complete)
    chosen = next((trial for trial in complete if trial.layers == replaced), None)

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 240.0 if size.is_narrow else 320.0
        x = Scale(-0.5, len(rows) - 0.5, 46.0 if size.is_narrow else 64.0, size.width - 8)
        y = value_scale([trial.value for trial in trials], height - 44, 34)
        ticks = [tick for tick in x.ticks(5 if size.is_narrow else 10) if tick == int(tick) and tick >= 0]
        elements = Axes(x, y, "trial", f"{objective} (higher is better)", ticks, y.ticks(5)).draw()
        radius = 2.6 if size.is_narrow else 3.4
        for trial in trials:
            judged = f"trial {trial.position} ({trial.kind}): {significant(trial.value, 4)}"
            shape, style = looks[trial.kind]
            tooltip = f"{judged}; layers {layer_list(trial.layers)}"
            elements.append(marker(shape, x(trial.position), y(trial.value), radius, style, tooltip))
        if len(best) > 1:
            elements.append(path([(x(position), y(value)) for position, value in best], "best"))
        if chosen is not None:
            elements.append(marker("circle", x(chosen.position), y(chosen.value), radius + 4, "chosen"))
        return height, elements

    legend = [(key(*look), kind) for kind, look in looks.items()]
    if len(best) > 1:
        legend.append((key("circle", "hidden", stroke="best"), "best so far"))
    if chosen is not None:
        legend.append((key("circle", "chosen"), "the plan"))
    failed = len(rows) - len(trials)
    notes = (f"{failed} of {len(rows)} trials gave no finite value and are not shown.",) if failed else ()
    top = max(complete or trials, key=lambda trial: trial.value)
    described = f"{len(trials)} judged sets; the best, {significant(top.value)}, in trial {top.position}."
    return Figure(figure("search", f"Search: {objective} per trial", described, draw), tuple(legend), notes)


def _trial(position: int, row: SearchStep, budget: int) -> _Trial | None:
    if row.value <= _FAILED:
        return None
    size = "single layers" if len(row.layers) == 1 else "sets of other sizes"
    kind = "sets of the budget's size" if len(row.layers) == budget else size
    return _Trial(position, sorted(row.layers), row.value, kind)


def _best_so_far(trials: list[_Trial]) -> list[tuple[float, float]]:
    """Corners of the step line over the trials that could have become the plan."""
    corners: list[tuple[float, float]] = []
    for trial in trials:
        best = max(trial.value, corners[-1][1]) if corners else trial.value
        if corners:
            corners.append((trial.position, corners[-1][1]))
        corners.append((trial.position, best))
    return corners
