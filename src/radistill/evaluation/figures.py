"""From the rows of a task to its figures."""

import math
from collections.abc import Sequence
from typing import Any

from radistill.evaluation.results import Row
from radistill.statistics import wilson

Figures = dict[str, Any]


def figures_of(rows: Sequence[Row]) -> Figures:
    """Accuracy with its 95 % Wilson interval, or nats a byte and perplexity; per group too, where rows have groups.

    An unfinished answer, cut at the length limit, counts as it stands, mostly as wrong; how many there are is shown
    apart, because a higher limit might make them right.
    """
    if not rows:
        return {"n": 0}
    if "nats" in rows[0]:
        return _predicted(rows)
    groups = list(dict.fromkeys(row["group"] for row in rows if row.get("group")))
    figures = _answered(rows)
    if groups:
        figures["groups"] = {group: _answered([row for row in rows if row.get("group") == group]) for group in groups}
    return figures


def _answered(rows: Sequence[Row]) -> Figures:
    correct = sum(row["correct"] for row in rows)
    return {
        "n": len(rows),
        "correct": correct,
        "accuracy": correct / len(rows),
        "interval": list(wilson(correct, len(rows))),
        "unfinished": sum(not row.get("finished", True) for row in rows),
    }


def _predicted(rows: Sequence[Row]) -> Figures:
    nats, length, tokens = (sum(row[name] for row in rows) for name in ("nats", "bytes", "tokens"))
    # Beyond e^700 a float ends; such a model predicts nothing.
    perplexity = math.exp(nats / tokens) if nats / tokens < 700 else None
    return {"n": len(rows), "nats_per_byte": nats / length, "perplexity": perplexity, "bytes": length, "tokens": tokens}
