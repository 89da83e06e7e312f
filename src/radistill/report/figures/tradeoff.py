"""What is kept over what the cache needs: a mark for each number of layers that go."""

from radistill.report.figures import Figure
from radistill.report.figures.lines import Point, Series, line_figure
from radistill.report.numbers import percent, significant
from radistill.report.svg import Scale
from radistill.runs.contents import TradeOff, TradeOffPoint

_LENGTH = "32768"
_NOTE = "Lines are 95 % intervals. The drafts are as the search judged them, without distillation."


def tradeoff_figures(found: TradeOff, budget: int) -> list[tuple[str, Figure]]:
    """Title and figure of the KL, and of the recall where it was measured; the mark of `budget` is the hybrid's."""
    drawn = []
    for what, y_title in (
        ("KL", "held-out KL, nats per response token"),
        ("Recall", "numbers found, % of the model's"),
    ):
        whole = max(point.cache_bytes.get(_LENGTH, 0) for point in found.points) or 1
        points = []
        for point in found.points:
            value, interval = point.kl, point.kl_interval
            if what == "Recall":
                if point.recall is None or point.recall_interval is None:
                    continue
                low, high = point.recall_interval
                value, interval = 100 * point.recall, (100 * low, 100 * high)
            style, label = ("hybrid", f"{budget} layers") if point.budget == budget else ("base", "")
            share = 100 * point.cache_bytes.get(_LENGTH, 0) / whole
            points.append(Point(share, value, interval, _said(point), style, label))
        ends = [point.interval[1] for point in points if point.interval]
        if what == "KL" or len(points) > 1:
            title = f"{what} over cache"
            figure = line_figure(
                f"tradeoff-{what.lower()}",
                title,
                ("cache at 32k tokens, % of the model's", y_title),
                [Series(what, "base", "circle", points)],
                Scale(0, 100, 0, 1),
                described="; ".join(point.said for point in points) + ".",
                highest=None if what == "KL" else 1.05 * max(100, *ends),
                legend=False,
                notes=(_NOTE,),
            )
            drawn.append((title, figure))
    return drawn


def _said(point: TradeOffPoint) -> str:
    recall = "" if point.recall is None else f", recall {percent(point.recall, 0)}"
    return f"{point.budget} layers replaced: KL {significant(point.kl)}{recall}"
