"""A price on attention layers that stay, instead of a fixed number of those that go."""

import itertools
import math
from functools import cache

import pytest

import tiny
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.objectives import Penalised, objective_from
from radistill.diagnosis.selectors import Bayes, BlockInfluence, Gates, Greedy, LeaveOneOut, Uniform
from radistill.diagnosis.trials import Trials
from radistill.models.sequences import Document

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", tuple(range(30, 42)), 1)]
KL = objective_from({"name": "kl"})
LAYERS = 5


@cache
def every_kl() -> dict[tuple[int, ...], float]:
    """By set of 1 to 4 layers."""
    trials = Trials(tiny.model("llama", layers=LAYERS), DOCUMENTS, KL)
    sets = [c for size in range(1, 5) for c in itertools.combinations(range(LAYERS), size)]
    return {layers: trials.judge(layers).kl for layers in sets}


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1.0, 100.0])
def test_greedy_finds_the_best_set_of_any_size(penalty: float) -> None:
    model = tiny.model("llama", layers=LAYERS)
    plan = diagnose(model, DOCUMENTS, 4, selector=Greedy(width=5, swap_width=5), penalty=penalty, by="redundancy")
    value, layers = max((penalty * len(layers) - kl, layers) for layers, kl in every_kl().items())
    assert plan.objective["value"] == pytest.approx(value, rel=1e-5)
    assert tuple(plan.replace) == layers
    assert plan.objective["penalty"] == penalty
    assert isinstance(objective_from(plan.objective), Penalised)


def test_a_free_lunch_takes_one_layer_and_a_high_price_all_that_may_go() -> None:
    model = tiny.model("llama", layers=LAYERS)
    assert len(diagnose(model, DOCUMENTS, 4, penalty=0.0, by="redundancy").replace) == 1
    assert len(diagnose(model, DOCUMENTS, 4, penalty=1000.0, by="redundancy").replace) == 4


@pytest.mark.parametrize(
    "selector",
    [
        Uniform(),
        BlockInfluence(),
        LeaveOneOut(),
        Gates(steps=6),
        Bayes(trials=4, startup=3),
        Bayes(trials=4, startup=4, warm_start=False),
    ],
    ids=lambda selector: f"{selector.kind}-{getattr(selector, 'warm_start', '')}",
)
def test_every_selector_answers_with_the_best_size_that_it_has_judged(selector) -> None:
    model = tiny.model("llama", layers=LAYERS)
    plan = diagnose(model, DOCUMENTS, 3, selector=selector, penalty=0.4, by="redundancy")
    assert 1 <= len(plan.replace) <= 3
    assert plan.objective["value"] == pytest.approx(0.4 * len(plan.replace) - plan.kl)
    complete = [step.value for step in plan.search if 1 <= len(step.layers) <= 3]
    assert plan.objective["value"] >= max(complete) - 1e-9
    assert math.isfinite(plan.kl)


def test_without_a_penalty_the_number_is_fixed() -> None:
    model = tiny.model("llama", layers=LAYERS)
    for selector in (Uniform(), Greedy(), LeaveOneOut()):
        plan = diagnose(model, DOCUMENTS, 3, selector=selector, by="redundancy")
        assert len(plan.replace) == 3
        assert "penalty" not in plan.objective
