"""The picture of the layers: what each plan keeps and replaces, under the scores that the search gave them."""

import math

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import layer_list, significant
from radistill.report.svg import Scale, Size, figure, line, marker, tag, text
from radistill.runs.read import Run

_GAP = 3.0
_TILE_HEIGHT = 28.0
_SCORES_HEIGHT = 96.0
_MEANINGS = {"attention": "attention kept", "replaced": "attention replaced by {}", "ssm": "already SSM"}


def layers_figure(run: Run) -> Figure:
    """One tile a layer for the hybrid's plan and, below it, for each arm's; scores above where the plan has them."""
    plans = [(hybrid.called, hybrid.replaced) for hybrid in run.hybrids if hybrid.plan is not None]
    scores = run.plan.scores or {}
    floor = _floor(list(scores.values()))

    def draw(size: Size) -> tuple[float, list[Markup]]:
        return _draw(size, run, plans, scores, floor)

    does = "cuts" if run.plan.whole_layers else "replaces"
    described = "; ".join(f"{name} {does} {layer_list(layers)}" for name, layers in plans)
    notes = []
    if scores:
        measured = f"({run.plan.score_kind or 'kind not stated'})"
        notes.append(
            f"Above the tiles: redundancy of each layer {measured}; the higher, the less the model misses the layer's "
            "attention."
            if run.plan.by == "redundancy"
            else f"Above the tiles: score of each layer {measured}; the higher, the sooner the search replaces the "
            "layer's attention."
        )
        if min(scores.values()) < floor:
            off = [layer for layer, score in sorted(scores.items()) if score < floor]
            notes.append(
                f"Layers far below the others are marked by a triangle with their value: {layer_list(off)}."
                if len(off) > 1
                else f"Layer {off[0]} lies far below the others and is marked by a triangle with its value."
            )
    else:
        notes.append("This plan has no score per layer.")
    return Figure(
        figure("layers", "Layers kept and replaced", f"{run.plan.num_layers} layers. {described}.", draw),
        (
            (_sample("attention"), "attention kept"),
            (_sample("replaced"), "layer cut" if run.plan.whole_layers else f"attention replaced by {run.block}"),
            *(((_sample("ssm"), "SSM in the base model already"),) if run.plan.ssm_layers else ()),
        ),
        tuple(notes),
    )


def _draw(
    size: Size, run: Run, plans: list[tuple[str, list[int]]], scores: dict[int, float], floor: float
) -> tuple[float, list[Markup]]:
    left = 60.0 if size.is_narrow else 96.0
    rows = math.ceil(run.plan.num_layers / (12 if size.is_narrow else 40))
    columns = math.ceil(run.plan.num_layers / rows)
    pitch = min((size.width - left) / columns, 64.0)
    kind = "redundancy score" if run.plan.by == "redundancy" else "score of the search"
    elements = [text(left, 10, kind, "axis-title")] if scores else []
    top = 32.0 if scores else 6.0
    for row in range(rows):
        layers = range(row * columns, min((row + 1) * columns, run.plan.num_layers))
        if scores:
            elements += _score_row(layers, scores, floor, left, pitch, top)
            top += _SCORES_HEIGHT + 10
        for name, replaced in plans:
            elements.append(text(left - 8, top + _TILE_HEIGHT / 2 + 4, name, "row-label", "end"))
            for position, layer in enumerate(layers):
                state = "replaced" if layer in replaced else "ssm" if layer in run.plan.ssm_layers else "attention"
                score = f", score {significant(scores[layer])}" if layer in scores else ""
                said = f"{name}, layer {layer}: {_MEANINGS[state].format(run.block)}{score}"
                elements.append(_tile(left + position * pitch, top, pitch - _GAP, layer, state, said))
            top += _TILE_HEIGHT + _GAP + 2
        top += 22 if scores else 12
    return top - 12, elements


def _score_row(
    layers: range, scores: dict[int, float], floor: float, left: float, pitch: float, top: float
) -> list[Markup]:
    high = max(scores.values())
    margin = 0.06 * (high - floor) or 0.1 * abs(high) or 1.0
    y = Scale(floor - margin, high + margin, top + _SCORES_HEIGHT, top)
    right = left + len(layers) * pitch - _GAP
    elements: list[Markup] = []
    for value in y.ticks(3):
        elements += [
            line(left, y(value), right, y(value), "grid"),
            text(left - 8, y(value) + 4, significant(value, 2), "tick", "end"),
        ]
    for position, layer in enumerate(layers):
        if layer not in scores:
            continue
        x = left + position * pitch + (pitch - _GAP) / 2
        score, tooltip = scores[layer], f"layer {layer}: score {significant(scores[layer])}"
        if score < floor:
            elements.append(marker("low", x, y.start - 7, 4.5, "score off", tooltip))
            lift = 12 if pitch < 26 and position % 2 else 0  # neighbours' values must not run into each other
            elements.append(text(x, y.start - 16 - lift, significant(score, 2), "tick off", "middle"))
        else:
            elements.append(line(x, y.start, x, y(score), "stem"))
            elements.append(marker("circle", x, y(score), min(4.0, pitch / 5), "score", tooltip))
    elements.append(line(left, y.start, right, y.start, "axis"))
    return elements


def _tile(x: float, y: float, width: float, layer: int, state: str, said: str) -> Markup:
    return tag(
        "g",
        tag("title", said),
        *_box(x, y, width, _TILE_HEIGHT, state),
        text(x + width / 2, y + _TILE_HEIGHT / 2 + 4, str(layer), "number", "middle"),
        class_=f"tile {state}",
    )


def _box(x: float, y: float, width: float, height: float, state: str) -> list[Markup]:
    box = [tag("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, rx=3)]
    if state == "ssm":
        box += [line(x + 4, y + inset, x + width - 4, y + inset, "bar") for inset in (5, height - 5)]
    return box


def _sample(state: str) -> Markup:
    return tag(
        "svg",
        tag("g", *_box(1, 0, 26, 14, state), class_=f"tile {state}"),
        class_="key",
        viewBox="0 0 28 14",
        aria_hidden="true",
    )


def _floor(values: list[float]) -> float:
    """Where the score axis begins: a vital layer far below must not flatten the differences between the rest."""
    if not values:
        return 0.0
    ordered = sorted(values)
    lower, upper = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
    fence = lower - 3 * (upper - lower)
    return min(value for value in ordered if value >= fence)
