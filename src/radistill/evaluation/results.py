"""How results of tasks are kept: names of files, rows, and their figures. Whoever only reads needs no torch."""

import math
from collections.abc import Sequence
from typing import Any

from radistill.statistics import wilson

SUMMARY = "tasks.json"

Row = dict[str, Any]
"""One example as it is kept in the task's JSONL: `id`, `key` (the same for the same question), and either `correct` or
`nats` and `bytes`."""

Figures = dict[str, Any]


def file_name(task: str) -> str:
    """A task's name as a part of a file's: a colon or slash is none everywhere."""
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in task)


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
