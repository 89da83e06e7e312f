"""The table of results for a terminal."""

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from radistill.console import show, table
from radistill.report.model_results import ModelResult, model_results
from radistill.report.numbers import EN_DASH, NOT_FINITE, NOT_MEASURED, interval, percent, significant, whole
from radistill.report.verdict import acceptance_sentence
from radistill.runs.folder import MAIN

# Heading and widest content of each column; with the model's and the space between them, 80 columns.
_MODEL_WIDTH = 23
_HEADINGS = {
    "KL\nnats": 8,
    "agree-\nment": 8,
    "per-\nplexity": 8,
    "exact\nmatch": 8,
    "KV bytes\na token": 8,
}
_METRICS: dict[str, Callable[[Any], str]] = {
    "kl": significant,
    "agreement": percent,
    "perplexity": significant,
    "exact_match": percent,
    "kv_bytes_per_token": whole,
}
_SHORT = {NOT_MEASURED: EN_DASH, NOT_FINITE: "nan"}


def print_evaluation(evaluation: dict[str, Any], kind: str = MAIN) -> None:
    """Print the content of `evaluation.json` on standard output; of a drafter (`kind`), what its target accepts."""
    show(evaluation_table(evaluation, kind))
    arms = model_results(evaluation, kind)
    if MAIN in arms and "base" in arms:
        for task in arms[MAIN].tasks:
            show(tasks_table(task, [arms["base"], arms[MAIN]]))
        show(acceptance_sentence(arms) if kind == "drafter" else trade_of(arms["base"], arms[MAIN]))


def evaluation_table(evaluation: dict[str, Any], kind: str = MAIN) -> Table:
    """The content of `evaluation.json` as a table of at most 80 columns; a dash is a figure that was not measured."""
    arms = list(model_results(evaluation, kind).values())
    made = table(_caption(arms))
    made.add_column("model", max_width=_MODEL_WIDTH, overflow="ellipsis", no_wrap=True)
    for heading, width in _HEADINGS.items():
        made.add_column(heading, justify="right", no_wrap=True, max_width=width, overflow="ellipsis")
    for arm in arms:
        made.add_row(Text(arm.name), *_figures(arm), style="bold" if arm.key == MAIN else None)
    return made


def tasks_table(task: str, arms: list[ModelResult]) -> Table:
    """The figures of a task with their 95 % intervals, a row for each group of its examples."""
    made = table("right answers, with the 95 % Wilson interval", task, "n")
    for arm in arms:
        made.add_column(Text(arm.name), justify="right")
    of = [arm.tasks.get(task, {}) for arm in arms]
    groups = [group for group in of[-1].get("groups", {}) if all(group in figures.get("groups", {}) for figures in of)]
    for name, figures in [
        *((group, [one["groups"][group] for one in of]) for group in groups),
        ("all", of),
    ]:
        made.add_row(Text(name), whole(figures[-1].get("n")), *map(_with_interval, figures))
    return made


def trade_of(base: ModelResult, hybrid: ModelResult) -> str:
    """In one sentence what was given up for what: KV cache, KL, and the figure of each task."""
    parts = []
    ours, theirs = hybrid.value("kv_bytes_per_token"), base.value("kv_bytes_per_token")
    if ours is not None and theirs:
        word = "less" if ours <= theirs else "more"
        parts.append(f"{percent(abs(1 - ours / theirs), 0)} {word} KV cache")
    parts.append(f"KL to the base {significant(hybrid.metrics.get('kl'))} nats a token")
    for task, figures in hybrid.tasks.items():
        of_base = f", base {_with_interval(base.tasks[task])}" if task in base.tasks else ""
        parts.append(f"{task} {_with_interval(figures)}{of_base}")
    return f"The trade: {'; '.join(parts)}."


def _with_interval(figures: dict[str, Any]) -> str:
    limits = f" ({interval(figures['interval'])})" if figures.get("interval") is not None else ""
    return f"{percent(figures.get('accuracy'))}{limits}"


def _figures(arm: ModelResult) -> list[str]:
    return [
        _fitting(spelt(arm.metrics.get(metric)), arm.metrics.get(metric), width)
        for (metric, spelt), width in zip(_METRICS.items(), _HEADINGS.values(), strict=True)
    ]


def _fitting(figure: str, value: Any, width: int) -> str:
    """A figure in its column; one that is too long as 1.1e+08: 111,804,512 that is cut off reads as a thousandth."""
    short = _SHORT.get(figure, figure)
    return short if len(short) <= width else f"{value:.1e}"


def _caption(arms: list[ModelResult]) -> str:
    if not arms:
        return "nothing has been evaluated yet"
    arm = next((arm for arm in arms if arm.key == MAIN), arms[0])
    parts = ["KL(base ‖ model), agreement, perplexity: per held-out response token"]
    if arm.value("n_tokens") is not None and arm.value("n_documents") is not None:
        parts.append(f"{whole(arm.value('n_tokens'))} tokens, {whole(arm.value('n_documents'))} documents")
    if arm.value("exact_match") is not None and arm.exact_match_n is not None:
        parts.append(f"exact match: {arm.exact_match_n:,} answers")
    return "; ".join(parts)
