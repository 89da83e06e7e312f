"""Savings for a terminal: the caches, then base and hybrid side by side at each context."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group

from radistill.console import table
from radistill.report.savings import cache_rows, crossover, speed_rows

_MODELS = ("base", "hybrid", "hybrid / base")


def savings_tables(savings: Mapping[str, Any]) -> Group:
    """What `measure_savings` returns."""
    settings = savings["settings"]
    cache = table("Keys, values and states of one sequence, from the config.", "", *_MODELS)
    for row in cache_rows(savings):
        cache.add_row(row.name, row.base, row.hybrid, row.ratio)
    speed = table(
        f"Medians of {settings['repeats']} passes after one to warm up, batch {settings['batch_size']}, "
        f"{savings['dtype']} on {savings['device']}, {savings['engine']}; memory beyond the weights. "
        f"{crossover(savings)}",
        *("context", "", *_MODELS),
    )
    for group in speed_rows(savings):
        for place, row in enumerate(group["rows"]):
            speed.add_row("" if place else group["context"], row.name, row.base, row.hybrid, row.ratio)
    return Group(cache, speed)
