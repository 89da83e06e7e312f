"""Speed and memory over context length, base and hybrid on one axis."""

from typing import Any

from radistill.report.figures import Figure
from radistill.report.figures.lines import context_figure, points_of
from radistill.report.numbers import integer, number
from radistill.runs.contents import mapping, records

_MIB = 2**20


def savings_figures(savings: dict[str, Any]) -> list[tuple[str, Figure]]:
    """Title and figure of each measure that savings.json has."""
    wanted = (
        ("prefill", "Reading the context", "tokens a second", "prefill_tokens_per_second", 1),
        ("decode", "Decoding after it", "tokens a second", "decode_tokens_per_second", 1),
        ("peak", "Peak memory beyond the weights", "MiB", "peak_bytes", _MIB),
    )
    drawn = [(title, _drawn(savings, name, title, unit, key, by)) for name, title, unit, key, by in wanted]
    return [(title, figure) for title, figure in drawn if figure is not None]


def _drawn(savings: dict[str, Any], name: str, title: str, unit: str, key: str, divisor: int) -> Figure | None:
    rows = records(savings.get("contexts"))
    series = {}
    for model in ("base", "hybrid"):
        pairs = [(integer(row.get("context")), number(mapping(row.get(model)).get(key))) for row in rows]
        series[model] = points_of(
            [(context, None if value is None else value / divisor) for context, value in pairs if context]
        )
    # From zero, so that a small difference looks small.
    most = max((point.value for points in series.values() for point in points), default=0.0)
    return context_figure(f"savings-{name}", title, unit, series, highest=1.08 * most if most > 0 else None)
