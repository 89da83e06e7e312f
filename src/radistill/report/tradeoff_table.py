"""The trade-off for a terminal, and the sentence on what was promised."""

from rich.table import Table

from radistill.console import table
from radistill.report.numbers import EN_DASH, MINUS, percent, significant
from radistill.runs.contents import Promise, TradeOff, TradeOffPoint
from radistill.texts import human_bytes


def tradeoff_table(found: TradeOff) -> Table:
    """A row for each number of layers that go. Intervals are at 95 %."""
    lengths = list(found.points[0].cache_bytes)
    caches = [f"cache at {int(length) // 1024}k" for length in lengths]
    made = table(promise(found), "layers", "KL, nats", "", "accepted", "of 4", "recall", "", *caches)
    for point in found.points:
        made.add_row(
            str(point.budget),
            significant(point.kl),
            _between([significant(end) for end in point.kl_interval]),
            percent(point.acceptance_rate),
            f"{point.accepted_length:.2f}",
            EN_DASH if point.recall is None else percent(point.recall, 0),
            "" if point.recall_interval is None else _between([percent(end, 0) for end in point.recall_interval]),
            *(human_bytes(point.cache_bytes[length]) for length in lengths),
            style="bold" if point.budget == found.budget else None,
        )
    return made


def promise(found: TradeOff) -> str:
    """What was promised, and which budget keeps it as far as was measured; without a promise, what the table is."""
    if not found.keep:
        return "the best layers of each number, held out"
    limits = {"kl": "KL at most {:g}", "recall": "recall at least {:g}"}
    asked = " and ".join(limits[name].format(limit) for name, limit in found.keep.items())
    if found.budget is None:
        return f"promised: {asked}; no budget keeps that"
    return f"promised: {asked}; kept by a budget of {found.budget}: {_measured(chosen(found))}"


def task_promise(found: Promise) -> str:
    """What was promised of tasks, and how each hybrid that was tried for it did them."""
    limits = " and ".join(f"{task} at most {_points(-limit)} points lower" for task, limit in found.keep.items())
    tried = []
    for one in found.candidates:
        of = [
            f"{task} {_points(did.difference)} ({_points(did.interval[0])} to {_points(did.interval[1])}, n {did.n})"
            for task, did in one.tasks.items()
        ]
        tried.append(f"{one.budget} layers replaced, {'kept' if one.is_kept else 'not kept'}: {', '.join(of)}")
    return f"promised: {limits}. Points that trained hybrids gained, with 95 % intervals: {'; '.join(tried)}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", MINUS)


def chosen(found: TradeOff) -> TradeOffPoint:
    """The point of the budget that was chosen."""
    return next(point for point in found.points if point.budget == found.budget)


def _measured(point: TradeOffPoint) -> str:
    text = f"KL {significant(point.kl)}, at most {significant(point.kl_interval[1])}"
    if point.recall is None or point.recall_interval is None:
        return text
    found = f"{point.found} numbers found, where the model finds {point.of}"
    found += f", so recall of at least {percent(point.recall_interval[0], 0)}"
    return f"{text}; {found}"


def _between(ends: list[str]) -> str:
    return f"{ends[0]} to {ends[1]}"
