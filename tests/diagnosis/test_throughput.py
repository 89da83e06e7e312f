"""Modelled throughput against arithmetic by hand, and the timing of components on tiny models."""

from pathlib import Path

import pytest

import tiny
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.judgement import JUDGED_LENGTHS, Judgement
from radistill.diagnosis.latency import Latencies, time_components, timed_once
from radistill.diagnosis.objectives import WORST, ThroughputModelled, objective_from
from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", tuple(range(30, 42)), 1)]

BY_HAND = Latencies(
    context=100,
    components={
        (0, Component.ATTENTION): 4.0,
        (0, Component.MLP): 2.0,
        (1, Component.ATTENTION): 3.0,
        (1, Component.MLP): 2.0,
    },
    head=1.0,
    rest=0.5,
    passes={1: 12.5, 2: 13.0, 3: 14.0, 5: 16.0, 9: 20.0, 17: 28.0},
)


def judgement(accepted: dict[int, float], layers: tuple[int, ...] = (0,), kl: float = 0.1) -> Judgement:
    return Judgement(ComponentMask.attention(layers), 0.5, accepted, kl)


def test_a_step_is_what_is_not_skipped() -> None:
    assert BY_HAND.step(ComponentMask.attention(())) == 12.5
    assert BY_HAND.step(ComponentMask.attention((0,))) == 8.5
    everything = ComponentMask(frozenset(BY_HAND.components))
    assert BY_HAND.step(everything) == 1.5


def test_passes_between_the_timed_ones_lie_on_a_line() -> None:
    assert [BY_HAND.verify(tokens) for tokens in (1, 3, 4, 13)] == [12.5, 14.0, 15.0, 24.0]
    with pytest.raises(ValueError, match="a pass over 18 tokens"):
        BY_HAND.verify(18)


def test_throughput_is_that_of_the_best_draft_length() -> None:
    objective = ThroughputModelled(BY_HAND)
    draft = judgement({1: 0.9, 2: 1.7, 4: 2.6})
    # Of a round: n steps of 8.5 and a pass over n + 1 tokens, for the accepted tokens and one more.
    speeds = {1: 1.9 / (8.5 + 13.0), 2: 2.7 / (17.0 + 14.0), 4: 3.6 / (34.0 + 16.0)}
    assert objective.by_length(draft) == pytest.approx(speeds)
    assert objective.value(draft) == pytest.approx(1.9 / 21.5)
    record = objective.record(draft)
    assert record["draft_length"] == 1
    assert record["speedup"] == pytest.approx(12.5 * 1.9 / 21.5)
    assert objective_from(record) == objective
    assert objective.value(judgement({1: 1.0}, kl=float("nan"))) == WORST


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid", "granitemoehybrid-experts"])
def test_every_component_is_timed_and_the_model_is_left_alone(family: str) -> None:
    model = tiny.model(family)
    found = time_components(model, 20, repeats=2)
    having = {
        (layer, component)
        for layer in range(model.anatomy.num_layers)
        for component in Component
        if model.anatomy.modules(model.network, layer, component)
    }
    assert set(found.components) == having
    assert all(seconds > 0 for seconds in [*found.components.values(), found.head, *found.passes.values()])
    assert found.rest >= 0
    assert max(found.passes) == max(JUDGED_LENGTHS) + 1
    assert Latencies.from_json(found.to_json()) == found
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_contexts_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(RadistillError, match=r"diagnose\.context_length is 513, but this model takes from 1 to 512"):
        time_components(tiny.model("llama"), 513)


def test_a_search_that_is_resumed_finds_the_latencies_that_it_began_with(tmp_path: Path) -> None:
    model = tiny.model("llama")
    first = timed_once(model, 20, tmp_path)
    assert timed_once(model, 20, tmp_path) == first
    assert timed_once(model, 21, tmp_path).context == 21


def test_a_plan_says_all_that_its_value_was_computed_from(tmp_path: Path) -> None:
    model = tiny.model("llama")
    settings = {"selector": "greedy", "context_length": 20}
    plan = diagnose(model, DOCUMENTS, 2, objective="throughput-modelled", **settings, by="redundancy")
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert read == plan
    again = diagnose(model, DOCUMENTS, 2, objective=objective_from(read.objective), **settings, by="redundancy")
    assert again.model_dump(exclude={"seconds"}) == plan.model_dump(exclude={"seconds"})
