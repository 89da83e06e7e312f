"""What counts as agreement between an engine and transformers."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("serving")


@pytest.mark.parametrize(
    ("theirs", "forced", "expected"),
    [
        ([[1, 2, 3], [4, 5]], False, (5, 5, 0)),
        ([[1, 9, 3], [4, 5]], False, (4, 3, 0)),  # without excuse; what follows is not looked at
        ([[1, 2, 9], [4, 5]], False, (4, 4, 1)),  # where the two likeliest were all but equal
        ([[1, 2], [4, 5]], False, (4, 4, 1)),  # ended early, there
        ([[1, 9, 9], [4, 5]], True, (5, 3, 1)),  # every place is looked at
    ],
)
def test_tokens_are_counted_to_the_first_difference(
    module: Any, theirs: list[list[int]], forced: bool, expected: tuple[int, int, int]
) -> None:
    found = module.compared([[1, 2, 3], [4, 5]], theirs, [[1.0, 1.0, 0.001], [1.0, 1.0]], 0.01, forced)
    assert (found["tokens_compared"], found["tokens_equal"], found["near_ties"]) == expected


@pytest.mark.parametrize(
    ("changed", "right"),
    [
        ({}, True),
        ({"tokens_equal": 99}, False),
        ({"tokens_equal": 97, "teacher_forced": True, "dtype": "bfloat16"}, True),
        ({"tokens_equal": 96, "teacher_forced": True, "dtype": "bfloat16"}, False),
        ({"log_probability_difference": 0.05}, False),
        ({"log_probability_difference": 0.05, "dtype": "bfloat16"}, True),
        ({"openai_interface": False}, False),
    ],
)
def test_what_is_asked_of_an_engine(module: Any, changed: dict[str, object], right: bool) -> None:
    figures = {
        "teacher_forced": False,
        "dtype": "float32",
        "tokens_compared": 100,
        "tokens_equal": 100,
        "log_probability_difference": 1e-5,
        "openai_interface": True,
    }
    assert module.agrees({**figures, **changed}) is right
