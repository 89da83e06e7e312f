"""The search for every size at once, mixed objectives and what retrieval texts tell, against plain enumeration."""

import math
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
import torch

import tiny
from diagnosis.test_diagnose import documents, naive
from radistill.diagnosis.diagnose import allowed_passes, diagnose
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.objectives import Figures, Objective, make_objective, objective_from
from radistill.diagnosis.search import search
from radistill.diagnosis.selectors import Curve, Greedy
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask, masked

KL = objective_from({"name": "kl"})


def answered(model: Model, count: int = 6, length: int = 5) -> list[Document]:
    """Documents whose response the model itself writes, but for every third, whose last token is another."""
    found = []
    for number, document in enumerate(documents(count)):
        prompt = torch.tensor([document.tokens[: document.response_start]])
        whole = model.network.generate(prompt, max_new_tokens=length, do_sample=False, eos_token_id=-1)[0].tolist()
        if number % 3 == 2:
            whole[-1] = (whole[-1] + 1) % 60
        found.append(Document(document.id, tuple(whole), document.response_start))
    return found


def finds(model: Model, layers: list[int], text: Document) -> bool:
    """Whether a model without some attentions writes exactly the response."""
    prompt = torch.tensor([text.tokens[: text.response_start]])
    count = len(text.tokens) - text.response_start
    with masked(model, ComponentMask.attention(layers)):
        written = model.network.generate(prompt, max_new_tokens=count, do_sample=False, eos_token_id=-1)[0]
    return bool(written.tolist() == list(text.tokens))


def test_a_number_is_found_where_the_draft_would_write_it() -> None:
    model = tiny.model("llama", layers=6)
    texts = answered(model)
    trials = Trials(model, documents(), KL, retrieval=texts, tokens_per_batch=30)
    seen = set()
    for layers in ([], [1], [4], [1, 3], [0, 2, 5]):
        in_order = sorted(texts, key=lambda one: (len(one.tokens), one.id))
        right = [finds(model, layers, text) for text in in_order]
        draft = trials.run_retrieval(layers)
        assert draft is not None
        assert draft.found == right
        judged = trials.judge(layers)
        assert judged.recall == sum(right) / len(right)
        assert judged.retrieval_kl == pytest.approx(naive(model, layers, texts)[1], rel=1e-3, abs=1e-7)
        assert judged.kl == pytest.approx(naive(model, layers, documents())[1], rel=1e-3, abs=1e-7)
        seen.add(judged.recall)
    assert trials.judge([]).recall == 4 / 6
    assert len(seen) > 1


def test_a_mix_is_the_weighted_sum_and_comes_back_from_json(tmp_path: Path) -> None:
    model = tiny.model("llama")
    mix = make_objective({"kl": 2, "retrieval": 0.5, "recall": 0.25}, model, 64, None)
    trials = Trials(model, documents(), mix, retrieval=answered(model), folder=tmp_path)
    judged = trials.judge([1])
    expected = -2 * judged.kl - 0.5 * judged.retrieval_kl + 0.25 * judged.recall
    assert mix.value(judged) == pytest.approx(expected)
    assert mix.name == "2 kl + 0.5 retrieval + 0.25 recall"
    assert objective_from(mix.to_json()) == mix
    again = Trials(model, documents(), mix, retrieval=answered(model), folder=tmp_path)
    again.run = None  # type: ignore[assignment,method-assign]
    assert again.value([1]) == mix.value(judged)
    without = Trials(model, documents(), KL, folder=tmp_path)
    assert math.isnan(without.judge([1]).recall)


@pytest.mark.parametrize("chosen", [{}, {"kl": 0}, {"kl": -1.0}, {"throughput-modelled": 1.0}, {"speed": 1.0}, "speed"])
def test_what_is_no_objective_is_refused(chosen: object) -> None:
    with pytest.raises(RadistillError, match=r"diagnose\.objective is .*, but it must (be|have)"):
        make_objective(chosen, tiny.model("llama"), 64, None)  # type: ignore[arg-type]


def test_an_objective_that_needs_texts_is_refused_without() -> None:
    with pytest.raises(RadistillError, match=r"diagnose\.objective is \{'kl': 1, 'recall': 1\}, which needs texts"):
        diagnose(tiny.model("llama"), documents(), 1, objective={"kl": 1, "recall": 1}, by="redundancy")


def test_layers_are_chosen_by_what_they_retrieve() -> None:
    """With enough weight on them, the answers of the texts decide, and the plan says so."""
    model = tiny.model("llama", layers=6)
    texts, docs = answered(model), documents()
    by = {(layer,): naive(model, [layer], texts)[1] for layer in range(6)}
    plan = diagnose(model, docs, 1, selector="leave-one-out", objective="retrieval", retrieval=texts, by="redundancy")
    greedy = diagnose(model, docs, 1, objective={"kl": 1e-6, "retrieval": 1}, retrieval=texts, by="redundancy")
    assert tuple(greedy.replace) == min(by, key=by.__getitem__)
    assert greedy.objective["weights"] == {"kl": 1e-6, "retrieval": 1}
    assert plan.objective["name"] == "retrieval"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_every_size_is_at_least_as_good_as_greedys_prefix(seed: int) -> None:
    model = tiny.model("llama", layers=6, seed=seed)
    trials = Trials(model, documents(), KL)
    found = search(Curve(width=2), Problem(trials, 5))
    best = {size: trials.best(range(size, size + 1)) for size in range(1, 6)}
    spent = found.forward_tokens / trials.calibration_tokens
    every = {one: KL.value(trials.judge(one)) for size in range(1, 6) for one in combinations(range(6), size)}
    prefix = Greedy(width=2, swaps=0)
    gaps = []
    for size, layers in best.items():
        assert layers is not None
        chain = search(prefix, Problem(trials, size))
        assert every[layers] >= chain.value
        gaps.append(max(every[one] for one in every if len(one) == size) - every[layers])
    assert gaps[0] == gaps[-1] == 0 or gaps[0] == 0  # a single layer is always the best one
    assert sum(gap == 0 for gap in gaps) >= 4
    assert spent <= 1 + Curve(width=2).most_passes(6, range(5, 6))


class Chance(Objective):
    """Any value, the same one for the same set."""

    name = "chance"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def value(self, draft: Judgement) -> float:
        return Random(f"{self.seed} {draft.mask}").random()


@pytest.mark.parametrize("passes", [None, 14, 25])
def test_a_plan_takes_the_set_of_its_size(passes: float | None) -> None:
    """Whatever the values are, the search for one size goes the way of the search for all."""
    trials = Trials(tiny.model("llama", layers=6), documents(), KL)
    for seed in range(8):
        trials.objective = Chance(seed)
        search(Curve(width=2), Problem(trials, 5), passes)
        sets = {size: trials.best(range(size, size + 1)) for size in range(1, 6)}
        for size, layers in sets.items():
            found = search(Curve(width=2), Problem(trials, size), passes)
            assert layers is None or tuple(found.selection.layers) == layers
    plan = diagnose(trials.model, documents(), 3, selector="curve", by="redundancy", passes=passes)
    trials.objective = KL
    search(Curve(), Problem(trials, 5), passes)
    assert trials.best(range(3, 4)) in (None, tuple(plan.replace))


def test_time_is_counted_in_passes_once(tmp_path: Path) -> None:
    trials = Trials(tiny.model("llama"), documents(), KL)
    trials.seconds_a_pass = 0.5
    assert allowed_passes(trials, None, None, tmp_path) is None
    assert allowed_passes(trials, 7.0, None, tmp_path) == 7
    assert allowed_passes(trials, None, 1, tmp_path) == 120
    trials.seconds_a_pass = 2.0
    assert allowed_passes(trials, None, 1, tmp_path) == 120  # as the search began
    assert allowed_passes(trials, 7.0, 1, tmp_path) == 7
    assert allowed_passes(trials, None, 1, None) == 30
    assert isinstance(make_objective({"kl": 1}, trials.model, 64, None), Figures)


def test_a_search_that_runs_out_of_time_has_the_best_layers_taken_alone() -> None:
    model = tiny.model("llama", layers=6)
    whole = diagnose(model, documents(), 2, objective="kl", by="redundancy")
    plan = diagnose(model, documents(), 2, objective="kl", by="redundancy", minutes=1e-9)
    assert len(plan.search) < len(whole.search)
    alone = {step.layers[0]: step.value for step in plan.search if len(step.layers) == 1}
    assert plan.replace == sorted(sorted(alone, key=lambda layer: -alone[layer])[:2])
