"""Savings for a terminal: the caches, then base and hybrid side by side at each context."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from radistill.report.numbers import EN_DASH, bytes_, number, percent, significant

_TIMES = "\N{MULTIPLICATION SIGN}"


def savings_tables(savings: Mapping[str, Any]) -> Group:
    """What `measure_savings` returns."""
    settings = savings["settings"]
    cache = _table("Keys, values and states of one sequence, from the config.")
    cache.add_column("")
    for name in ("base", "hybrid", "hybrid / base"):
        cache.add_column(name, justify="right", no_wrap=True)
    base, hybrid = (savings["models"][name] for name in ("base", "hybrid"))
    rows = [("weights", base["weight_bytes"], hybrid["weight_bytes"])]
    rows.append(("KV cache a token", base["kv_bytes_per_token"], hybrid["kv_bytes_per_token"]))
    rows += [
        (f"cache at {int(length):,} tokens", size, hybrid["cache_bytes"][length])
        for length, size in base["cache_bytes"].items()
    ]
    for name, one, other in rows:
        cache.add_row(name, bytes_(one), bytes_(other), ratio(one, other))
    speed = _table(
        f"Medians of {settings['repeats']} passes after one to warm up, batch {settings['batch_size']}, "
        f"{savings['dtype']} on {savings['device']}; memory beyond the weights."
    )
    for heading in ("context", "", "prefill\ntokens/s", "decoding\ntokens/s", "peak\nmemory", "with draft\ntokens/s"):
        speed.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in savings["contexts"]:
        for name in ("base", "hybrid"):
            speed.add_row(f"{row['context']:,}" if name == "base" else "", name, *_cells(row[name]))
        speed.add_row("", "hybrid / base", *(ratio(row["base"][key], row["hybrid"][key]) for key in _KEYS), "")
    return Group(cache, speed)


_KEYS = ("prefill_tokens_per_second", "decode_tokens_per_second", "peak_bytes")


def ratio(base: Any, hybrid: Any) -> str:
    """The hybrid's figure over the base's, as '0.67 ×'; a dash where one is missing or zero."""
    one, other = number(base), number(hybrid)
    return EN_DASH if not one or other is None else f"{significant(other / one, 2)} {_TIMES}"


def _cells(figures: Mapping[str, Any]) -> list[str]:
    prefill, decode, peak = (figures[key] for key in _KEYS)
    drafted = figures["self_speculation"]
    with_draft = EN_DASH
    if drafted:
        with_draft = f"{significant(drafted['tokens_per_second'])}\n({percent(drafted['acceptance_rate'], 0)} accepted)"
    return [significant(prefill), significant(decode), EN_DASH if peak is None else bytes_(peak), with_draft]


def _table(caption: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
