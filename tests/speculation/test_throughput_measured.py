"""Throughput measured by decoding: what is counted, and an objective that asks for it."""

from pathlib import Path

import pytest

import tiny
from radistill.diagnosis import trials as trials_module
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.objectives import WORST, ThroughputMeasured, objective_from
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.trials import Trials
from radistill.models.sequences import Document
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask
from radistill.speculation.throughput import Throughput, measure_throughput

DOCUMENTS = [Document("a", tuple(range(5, 25)), 4), Document("b", tuple(range(30, 42)), 1)]


def test_tokens_read_are_those_that_reach_either_model() -> None:
    model = tiny.model("llama")
    mask = ComponentMask.attention([0])
    read = 0

    def count(module, args, kwargs) -> None:
        nonlocal read
        read += kwargs["input_ids"].numel()

    handle = model.network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        measured = measure_throughput(model, DOCUMENTS, mask, 3)
    finally:
        handle.remove()
    prompts = [document.tokens[: document.response_start] for document in DOCUMENTS]
    decoded = speculative_generate(model, prompts, mask, draft_length=3, max_new_tokens=16)
    assert measured.tokens_per_second == pytest.approx(decoded.tokens / measured.seconds)
    # A draft that was accepted whole reads its last token in the next round, so the count is an upper bound.
    assert read <= measured.tokens_read <= read + decoded.rounds + len(prompts)


def test_a_set_is_decoded_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    speeds = iter([5.0, 7.0])
    asked: list[ComponentMask] = []

    def decode(model, documents, mask, draft_length) -> Throughput:
        asked.append(mask)
        return Throughput(next(speeds), 1.0, 40)

    monkeypatch.setattr(trials_module, "measure_throughput", decode)
    objective = ThroughputMeasured(3)
    known = Trials(model, DOCUMENTS, objective_from({"name": "kl"}), folder=tmp_path)
    known.value([0])  # judged before by a forward pass alone
    trials = Trials(model, DOCUMENTS, objective, folder=tmp_path)
    assert [trials.value([0]), trials.value([1]), trials.value([0])] == [5.0, 7.0, 5.0]
    assert asked == [ComponentMask.attention([0]), ComponentMask.attention([1])]
    assert trials.forward_tokens >= 80
    later = Trials(model, DOCUMENTS, objective, folder=tmp_path)
    assert [later.value([1]), later.value([0])] == [7.0, 5.0]
    assert len(asked) == 2


@pytest.mark.slow
def test_a_plan_is_found_by_decoding() -> None:
    model = tiny.model("llama")
    plan = diagnose(
        model, DOCUMENTS, 2, selector="greedy", objective="throughput-measured", draft_length=2, by="redundancy"
    )
    assert plan.objective["name"] == "throughput-measured"
    assert plan.objective["draft_length"] == 2
    assert plan.objective["value"] > 0
    assert objective_from(plan.objective) == ThroughputMeasured(2)
    assert Plan.model_validate(plan.model_dump()) == plan


def test_a_draft_without_numbers_is_the_worst() -> None:
    model = tiny.model("llama")
    trials = Trials(model, DOCUMENTS, ThroughputMeasured(2))
    draft = trials.judge([0])
    broken = type(draft)(draft.mask, 0.0, draft.mean_accepted_length, float("nan"), draft.decoded)
    assert trials.objective.value(broken) == WORST
