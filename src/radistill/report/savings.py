"""The savings as tables: caches from the configs, and what was measured at each context, of base and hybrid."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Group

from radistill.console import table
from radistill.report.numbers import EN_DASH, bytes_, integer, number, percent, significant
from radistill.runs.contents import LONG, mapping, records

_DECODING = "decode_tokens_per_second"
_PASSES = f"passes after one to warm up (none from {LONG:,} tokens)"


class SavingsRow(NamedTuple):
    """A figure of both models, as text; `ratio` is the hybrid's over the base's."""

    name: str
    base: str
    hybrid: str
    ratio: str


def savings_tables(savings: Mapping[str, Any]) -> Group:
    """What `measure_savings` returns, for a terminal."""
    settings, models = savings["settings"], ("base", "hybrid", "hybrid / base")
    cache = table("Keys, values and states of one sequence, from the config.", "", *models)
    for row in cache_rows(savings):
        cache.add_row(*row)
    speed = table(
        f"Medians of {_turns(savings)} {_PASSES}, batch {settings['batch_size']}, {savings['dtype']} on "
        f"{savings['device']}, {savings['engine']}; memory beyond the weights. {crossover(savings)}",
        *("context", "", *models),
    )
    for group in speed_rows(savings):
        for place, row in enumerate(group["rows"]):
            speed.add_row("" if place else group["context"], *row)
    return Group(cache, speed)


def _turns(savings: Mapping[str, Any]) -> str:
    """Timed passes of each model over a context, as '2' or '1 to 3'; an older file says what was asked."""
    counts = {len(records(mapping(row.get("base")).get("passes"))) for row in records(savings.get("contexts"))} - {0}
    if not counts:
        return str(mapping(savings.get("settings")).get("repeats", "?"))
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def ratio(base: Any, hybrid: Any) -> str:
    """The hybrid's figure over the base's, as '0.67 ×'; a dash where one is missing or zero."""
    one, other = number(base), number(hybrid)
    return EN_DASH if not one or other is None else f"{significant(other / one, 2)} \N{MULTIPLICATION SIGN}"


def cache_rows(savings: Mapping[str, Any]) -> list[SavingsRow]:
    """Weights, and cache by length."""
    base, hybrid = (mapping(mapping(savings.get("models")).get(name)) for name in ("base", "hybrid"))
    if not base or not hybrid:
        return []
    pairs = [("weights", base.get("weight_bytes"), hybrid.get("weight_bytes"))]
    pairs.append(("KV cache a token", base.get("kv_bytes_per_token"), hybrid.get("kv_bytes_per_token")))
    for length, size in mapping(base.get("cache_bytes")).items():
        tokens = f"{int(length) // 1024}k" if length.isdecimal() else length
        pairs.append((f"cache at {tokens} tokens", size, mapping(hybrid.get("cache_bytes")).get(length)))
    return [SavingsRow(name, bytes_(one), bytes_(other), ratio(one, other)) for name, one, other in pairs]


def speed_rows(savings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each context its rows: prefill, decoding, with a draft, peak memory."""
    found = []
    for row in records(savings.get("contexts")):
        models = [mapping(row.get(name)) for name in ("base", "hybrid")]
        rows = []
        for name, key, form in (
            ("prefill, tokens/s", "prefill_tokens_per_second", significant),
            ("decoding, tokens/s", _DECODING, significant),
            ("peak memory", "peak_bytes", bytes_),
        ):
            base, hybrid = (model.get(key) for model in models)
            rows.append(SavingsRow(name, form(base), form(hybrid), ratio(base, hybrid)))
        if any(model.get("self_speculation") for model in models):
            rows.append(
                SavingsRow("decoding with a draft, tokens/s", _drafted(models[0]), _drafted(models[1]), EN_DASH)
            )
        found.append({"context": f"{integer(row.get('context')) or 0:,}", "rows": rows})
    return found


def crossover(savings: Mapping[str, Any]) -> str:
    """From which context on the hybrid decodes faster, in a sentence; as far as was measured."""
    speeds = []
    for row in records(savings.get("contexts")):
        base, hybrid = (number(mapping(row.get(name)).get(_DECODING)) for name in ("base", "hybrid"))
        if base and hybrid:
            speeds.append((integer(row.get("context")) or 0, hybrid >= base))
    if not speeds:
        return ""
    speeds.sort()
    slower = [context for context, is_faster in speeds if not is_faster]
    if not slower:
        return f"The hybrid decodes at least as fast as the base from the shortest context on, {speeds[0][0]:,} tokens."
    later = [context for context, _ in speeds if context > slower[-1]]
    if not later:
        return f"The hybrid decodes more slowly than the base, also at {slower[-1]:,} tokens."
    return f"The hybrid decodes more slowly than the base at {slower[-1]:,} tokens, and faster from {later[0]:,} on."


def savings_note(savings: dict[str, Any]) -> str:
    """How it was measured."""
    settings, machine = mapping(savings.get("settings")), mapping(savings.get("machine"))
    where = savings.get("device", "?")
    processor = f"{machine.get('processor', 'unknown processor')}, {machine.get('threads', '?')} threads"
    if str(where).startswith("cuda"):
        processor = str(machine.get("accelerators", "unknown accelerator")).strip("[]'")
    return (
        f"Medians of {_turns(savings)} {_PASSES}, base and hybrid in turns, "
        f"batch {settings.get('batch_size', '?')}, {savings.get('dtype', '?')} on {where} ({processor}), "
        f"{savings.get('engine', 'transformers')}. {crossover(savings)} Peak memory is beyond the weights. With "
        "a draft: self-speculation, the base without the attention that the hybrid replaces, the hybrid without any."
    )


def _drafted(model: dict[str, Any]) -> str:
    drafted = mapping(model.get("self_speculation"))
    if not drafted:
        return EN_DASH
    accepted = percent(drafted.get("acceptance_rate"), 0)
    return f"{significant(drafted.get('tokens_per_second'))} ({accepted} accepted)"
