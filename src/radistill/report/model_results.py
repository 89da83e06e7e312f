"""The models that an evaluation compares, in the order and under the names in which people read them."""

from dataclasses import dataclass
from typing import Any

from radistill.report.numbers import integer, interval, number
from radistill.runs.contents import mapping
from radistill.runs.folder import MAIN

START = f"{MAIN}_start"
_NAMES = {"base": "base", "draft": "draft at start", START: f"{MAIN} at start", MAIN: MAIN}


@dataclass(frozen=True)
class ModelResult:
    """One row of results. Shares are between 0 and 1; `value` gives a metric if it is a finite number."""

    key: str
    name: str
    metrics: dict[str, Any]

    def value(self, metric: str) -> float | None:
        return number(self.metrics.get(metric))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the exact match, as shares."""
        bounds = self.metrics.get("exact_match_interval")
        return None if bounds is None else (bounds[0], bounds[1])

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Figures of the tasks that the recipe asks, by their names: only those with right and wrong answers."""
        tasks = mapping(self.metrics.get("tasks"))
        return {name: figures for name, figures in tasks.items() if figures.get("accuracy") is not None}

    @property
    def exact_match_n(self) -> int | None:
        """Number of answers that were generated and checked."""
        return integer(self.metrics.get("exact_match_n"))

    @property
    def exact_match_details(self) -> list[str]:
        """'n = 48, 23-47' (the 95 % interval in per cent) and '3 unfinished', as far as known."""
        if self.value("exact_match") is None:
            return []
        sample = [f"n = {self.exact_match_n:,}"] if self.exact_match_n is not None else []
        if self.interval is not None:
            sample.append(interval(self.interval))
        unfinished = integer(self.metrics.get("unfinished"))
        return [text for text in (", ".join(sample), f"{unfinished:,} unfinished" if unfinished else "") if text]


def model_name(key: str, kind: str) -> str:
    """What people call the model under `key`: an arm by its name, 'uniform at start' before its training."""
    start = " at start" if key.endswith("_start") else ""
    name = _NAMES.get(key) or key.removesuffix("_start") + start
    return kind + name.removeprefix(MAIN) if key in (MAIN, START) else name


def model_results(evaluation: dict[str, Any], kind: str) -> dict[str, ModelResult]:
    """The models in `evaluation` by their keys: base, draft and the main one first, then the others in their own order.

    Args:
        evaluation: the content of `evaluation.json`.
        kind: what the main one is called, `Run.kind`.
    """
    others = [key for key, value in evaluation.items() if key not in _NAMES and "kl" in mapping(value)]
    found = {key: mapping(evaluation.get(key)) for key in (*_NAMES, *others)}
    return {key: ModelResult(key, model_name(key, kind), metrics) for key, metrics in found.items() if metrics}
