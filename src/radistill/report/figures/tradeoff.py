"""What is kept over what the cache needs: a mark for each number of layers that go."""

from collections.abc import Sequence

from markupsafe import Markup

from radistill.report.figures import Figure
from radistill.report.numbers import percent, significant
from radistill.report.svg import Axes, Scale, Size, figure, line, marker, path, text, value_scale
from radistill.runs.contents import TradeOff, TradeOffPoint

_LENGTH = "32768"


def tradeoff_figures(found: TradeOff, budget: int) -> list[tuple[str, Figure]]:
    """Title and figure of the KL, and of the recall where it was measured; the mark of `budget` is the hybrid's."""
    recalls = [point for point in found.points if point.recall is not None and point.recall_interval is not None]
    drawn = [("KL over cache", _figure(found.points, budget, "kl"))]
    return drawn + ([("Recall over cache", _figure(recalls, budget, "recall"))] if len(recalls) > 1 else [])


def _figure(points: Sequence[TradeOffPoint], budget: int, what: str) -> Figure:
    whole = max(point.cache_bytes.get(_LENGTH, 0) for point in points) or 1
    marks = [(point, 100 * point.cache_bytes.get(_LENGTH, 0) / whole, *_values(point, what)) for point in points]

    def draw(size: Size) -> tuple[float, list[Markup]]:
        height = 230.0 if size.is_narrow else 280.0
        x = Scale(0, 100, 46.0 if size.is_narrow else 64.0, size.width - 30)
        ends = [end for _, _, _, interval in marks for end in interval]
        y = Scale(0, 105, height - 44, 34) if what == "recall" else value_scale(ends, height - 44, 34)
        y_title = "numbers found, % of the model's" if what == "recall" else "held-out KL, nats per response token"
        elements = Axes(x, y, "cache at 32k tokens, % of the model's", y_title, x.ticks(5), y.ticks(5)).draw()
        elements.append(path([(x(share), y(value)) for _, share, value, _ in marks], "curve base"))
        for point, share, value, (low, high) in marks:
            style = "hybrid" if point.budget == budget else "base"
            elements.append(line(x(share), y(low), x(share), y(high), f"interval {style}"))
            elements.append(marker("circle", x(share), y(value), 3.6, f"mark {style}", _said(point)))
            if style == "hybrid":
                elements.append(text(x(share) + 8, y(value) - 8, f"{budget} layers", "end hybrid"))
        return height, elements

    described = "; ".join(_said(point) for point in points)
    notes = ("Lines are 95 % intervals. The drafts are as the search judged them, without distillation.",)
    title = "Recall over cache" if what == "recall" else "KL over cache"
    return Figure(figure(f"tradeoff-{what}", title, f"{described}.", draw), (), notes)


def _values(point: TradeOffPoint, what: str) -> tuple[float, tuple[float, float]]:
    if what == "kl":
        return point.kl, point.kl_interval
    assert point.recall is not None
    assert point.recall_interval is not None
    low, high = point.recall_interval
    return 100 * point.recall, (100 * low, 100 * high)


def _said(point: TradeOffPoint) -> str:
    recall = "" if point.recall is None else f", recall {percent(point.recall, 0)}"
    return f"{point.budget} layers replaced: KL {significant(point.kl)}{recall}"
