"""The few tokens of a verification against the recurrences token by token: outputs, and the states after each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile import HOSTILE, Given
from naive import naive_delta_rule, naive_scan
from torch import Tensor

from radistill.mixers.fast import replay
from radistill.mixers.gdn.delta.step import continued_rule
from radistill.mixers.mamba2.ssd.step import continued_scan

BATCH, HEADS = 3, 4


def of_mamba2(time: int, groups: int = 2) -> Given:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(BATCH, time, HEADS, 5),
        "dt": normal(BATCH, time, HEADS),
        "A": -normal(HEADS).exp(),
        "B": normal(BATCH, time, groups, 6),
        "C": normal(BATCH, time, groups, 6),
        "D": normal(HEADS),
        "dt_bias": normal(HEADS) - 1,
        "initial_state": normal(BATCH, HEADS, 5, 6),
    }


def of_delta(time: int, groups: int = 2) -> Given:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "q": normal(BATCH, time, groups, 6),
        "k": normal(BATCH, time, groups, 6),
        "v": normal(BATCH, time, HEADS, 5),
        "g": -normal(BATCH, time, HEADS).exp(),
        "beta": normal(BATCH, time, HEADS).sigmoid(),
        "initial_state": normal(BATCH, HEADS, 6, 5),
    }


def naive_rule(**given: Any) -> tuple[Tensor, Tensor]:
    return naive_delta_rule(**given, normalise=True)


def rule(**given: Any) -> tuple[Tensor, replay.Replay]:
    return continued_rule(**given, normalise=True)


KINDS = {"mamba2": (of_mamba2, continued_scan, naive_scan), "gdn": (of_delta, rule, naive_rule)}


def largest_difference(kind: str, given: Given, dtype: torch.dtype) -> float:
    """Of the outputs and of the states after 0 to all tokens, relative to the largest number of each."""
    _, continued, naive = KINDS[kind]
    time = given["dt" if kind == "mamba2" else "g"].shape[1]
    y, kept = continued(**{"initial_state": None, **{name: tensor.to(dtype) for name, tensor in given.items()}})
    assert y.dtype == dtype
    pairs = [(y, naive(**given)[0])]
    whole = [name for name, tensor in given.items() if name != "initial_state" and tensor.dim() > 1]
    states = [given.get("initial_state", torch.zeros(()))]
    for end in range(1, time + 1):
        states.append(naive(**given | {name: given[name][:, :end] for name in whole})[1])
    for first in range(time + 1):
        # Each row stops elsewhere.
        counts = (first + torch.arange(BATCH)) % (time + 1)
        found = kept(counts)
        for row, count in enumerate(counts.tolist()):
            pairs.append((found[row], states[count].expand(BATCH, *found.shape[1:])[row]))
    assert all(found.isfinite().all() for found, _ in pairs)
    return max(float((found.double() - real).abs().max() / real.abs().max().clamp(min=1.0)) for found, real in pairs)


@pytest.mark.parametrize("time", range(1, 18))
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_states_are_those_of_the_recurrence(kind: str, time: int) -> None:
    given = KINDS[kind][0](time)
    assert largest_difference(kind, given, torch.float64) < 1e-10
    assert largest_difference(kind, given, torch.float32) < 1e-5


@pytest.mark.parametrize("groups", [1, HEADS])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_no_state(kind: str, groups: int) -> None:
    given = KINDS[kind][0](7, groups)
    assert largest_difference(kind, given, torch.float64) < 1e-10
    del given["initial_state"]
    assert largest_difference(kind, given, torch.float64) < 1e-10


@pytest.mark.parametrize(("kind", "change"), HOSTILE)
def test_hostile_inputs(kind: str, change: Callable[[Given], None]) -> None:
    given = KINDS[kind][0](17)
    change(given)
    assert largest_difference(kind, given, torch.float64) < 1e-10
    assert largest_difference(kind, given, torch.float32) < 1e-5


@pytest.mark.parametrize("broken", ["pairwise", "until"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_decay_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str, broken: str) -> None:
    """The negative control."""
    real = getattr(replay.FewDecays, broken)

    def wrong(self: replay.FewDecays, *arguments: Tensor) -> Any:
        found = real(self, *arguments)
        return found * 1.001 if isinstance(found, Tensor) else (found[0], found[1] * 1.001)

    monkeypatch.setattr(replay.FewDecays, broken, wrong)
    assert largest_difference(kind, KINDS[kind][0](5), torch.float64) > 1e-6
