"""The choice of a learning rate: its neighbours, rates that break, and what its settings refuse."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from radistill.distillation.rates import RateSearch, best_rate
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError, TrainingDivergedError

THREE = [1e-4, 3e-4, 1e-3]


def breaking_above(limit: float) -> Any:
    def attempt(rate: float) -> float:
        if rate > limit:
            raise TrainingDivergedError(f"the gradient is not finite at {rate:g}")
        return 1 / rate

    return attempt


def test_a_rate_that_breaks_training_is_out_of_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert best_rate(THREE, breaking_above(5e-4)) == (3e-4, {1e-4: 1 / 1e-4, 3e-4: 1 / 3e-4, 1e-3: None})
    assert "learning rate 0.001: the gradient is not finite" in capsys.readouterr().err
    with pytest.raises(RadistillError, match=r"not finite at 0\.001"):  # the last one
        best_rate(THREE, breaking_above(0), further=4)


@pytest.mark.parametrize(
    ("rates", "optimum", "further", "best", "tried"),
    [
        (THREE, 3e-4, 4, 3e-4, THREE),
        (THREE, 3e-3, 4, 3e-3, [*THREE, 3e-3, 1e-2]),
        (THREE, 1e-2, 1, 3e-3, [*THREE, 3e-3]),
        (THREE, 1e-2, 0, 1e-3, THREE),
        (THREE, 3e-5, 4, 3e-5, [1e-5, 3e-5, *THREE]),
        (THREE, 1e-9, 6, 1e-7, [1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, *THREE]),
        ([1e-4], 1e-4, 4, 1e-4, [3e-5, 1e-4, 3e-4]),  # a single one has an edge on either side
        ([2e-5, 1e-2], 1e-5, 4, 1e-5, [3e-6, 1e-5, 2e-5, 1e-2]),  # between two rates nothing is tried
        ([1e-9, 3e-9], 1e-12, 4, 1e-9, [1e-9, 3e-9]),  # lower is no rate any more
    ],
)
def test_a_best_rate_has_a_worse_one_on_either_side(
    rates: list[float], optimum: float, further: int, best: float, tried: list[float]
) -> None:
    found, kls = best_rate(rates, lambda rate: abs(math.log10(rate / optimum)), further)
    assert (found, list(kls)) == (best, tried)


def test_a_rate_beyond_the_edge_that_breaks_training_ends_the_choice() -> None:
    found, kls = best_rate(THREE, breaking_above(1e-3), further=4)
    assert (found, kls[3e-3], len(kls)) == (1e-3, None, 4)


def test_another_error_is_not_taken_for_a_bad_rate() -> None:
    def attempt(rate: float) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        best_rate(THREE, attempt)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rates"),
        ({"rates": []}, "rates"),
        ({"rates": [1e-4, 1e-4]}, "have to rise"),
        ({"rates": [1e-3, 1e-4]}, "have to rise"),
        ({"rates": [0.0, 1e-4]}, "greater than 0"),
        ({"rates": [math.inf]}, "finite"),
        ({"rates": THREE, "share": 0}, "share"),
        ({"rates": THREE, "share": 1.5}, "share"),
        ({"rates": THREE, "further": -1}, "further"),
        ({"rates": THREE, "best": 1e-4}, "best"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RateSearch.model_validate(fields)


def test_by_default_there_is_no_search() -> None:
    assert DistillSettings().rate_search is None
    search = DistillSettings.model_validate({"rate_search": {"rates": THREE}}).rate_search
    assert search == RateSearch(rates=THREE, share=0.1, further=4)
