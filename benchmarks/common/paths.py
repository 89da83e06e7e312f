"""Several paths through the same function, timed side by side, and what they return compared."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Paths = dict[str, Callable[[], AbstractContextManager[None]]]
"""What puts each path in place, by name: ours first, then the one it is compared with, then others."""


def compare(paths: Paths, run: Callable[[], dict[str, Tensor]], repeats: int) -> dict[str, Any]:
    """Time `run` on every path, in turns, and compare what it returns.

    Returns:
        Seconds (median) by path, ratios to ours, and the largest difference of any result of the first path from that
        of the second: root mean square of the difference over that of the result.
    """
    ours, reference, *_ = paths
    results, seconds = {}, defaultdict(list)
    for name, path in paths.items():
        with path():
            run()
            results[name] = run()
    for _ in range(repeats):
        for name, path in paths.items():
            with path():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    differences = {
        name: float((results[ours][name] - expected).norm() / expected.norm())
        for name, expected in results[reference].items()
    }
    worst = max(differences, key=lambda name: differences[name])
    return {
        "seconds": medians,
        "ratio": {name: medians[name] / medians[ours] for name in paths if name != ours},
        "largest_difference": {worst: differences[worst]},
    }


def shares(run: Callable[[], Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Share of each kind of operation in the time of `run`.

    Args:
        run: what is profiled.
        kinds: parts of the names of operations, by kind; what fits nowhere is elementwise or a copy.
    """
    run()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(3):
            run()
    spent: dict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        kind = next((kind for kind, parts in kinds.items() if any(part in event.key for part in parts)), None)
        spent[kind or "elementwise and copies"] += event.self_cpu_time_total
    return {kind: round(time / sum(spent.values()), 3) for kind, time in spent.items()}


def summary(found: dict[str, Any]) -> str:
    """What `compare` found, on one line."""
    seconds = ", ".join(f"{name} {1000 * taken:.1f} ms" for name, taken in found["seconds"].items())
    return seconds + "; " + ", ".join(f"{ratio:.2f} x {name}" for name, ratio in found["ratio"].items())
