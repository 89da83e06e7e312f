"""Searches that are stopped, resumed and compared, on tiny models."""

import json
from pathlib import Path

import optuna
import pytest
import torch
from test_diagnose import KL, documents

import tiny
from radistill.console import console
from radistill.diagnosis.diagnose import SearchInterrupted, diagnose
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.search import search
from radistill.diagnosis.selectors import SELECTORS, All, Bayes, Gates, Greedy, LeaveOneOut, Uniform
from radistill.diagnosis.selectors.base import Problem, Selector
from radistill.diagnosis.trials import OutOfTokens, Trials
from radistill.errors import RadistillError

SEARCHES: list[Selector] = [Bayes(trials=8, startup=4), Gates(steps=6, judge_every=1), Greedy(width=3)]


class Interrupted(Trials):
    """Ctrl-C comes when a set is to be judged after `at` others."""

    at = 0

    def value(self, layers):
        if self.at == 0:
            raise KeyboardInterrupt
        self.at -= 1
        return super().value(layers)


def same(one: Plan, other: Plan) -> bool:
    timed = {"seconds": True, "alternatives": {"__all__": {"seconds"}}}
    return one.model_dump(exclude=timed) == other.model_dump(exclude=timed)


@pytest.mark.slow
@pytest.mark.parametrize("selector", SEARCHES, ids=lambda selector: selector.kind)
def test_ctrl_c_keeps_the_best_plan_and_the_same_command_goes_on(
    selector: Selector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama", layers=6)
    whole = diagnose(model, documents(), 2, selector=selector, objective="kl", by="redundancy")
    monkeypatch.setattr("radistill.diagnosis.diagnose.Trials", Interrupted)
    interrupted = None
    for at in (0, 2, 9, 1000):
        monkeypatch.setattr(Interrupted, "at", at)
        with console.capture() as printed:
            try:
                plan = diagnose(
                    model, documents(), 2, selector=selector, objective="kl", folder=tmp_path, by="redundancy"
                )
                break
            except SearchInterrupted as stopped:
                interrupted = stopped.plan
            except KeyboardInterrupt:  # before any pair of layers was judged
                assert not [key for key in _judged(tmp_path) if len(key) == 2]
                continue
        complete = [step for step in interrupted.search if len(step.layers) == 2]
        assert interrupted.replace in [step.layers for step in complete]
        assert interrupted.objective["value"] == max(step.value for step in complete)
        assert "interrupted; the best of" in printed.get()
    assert interrupted is not None
    assert same(plan, whole)  # what was judged before Ctrl-C was not judged again, and the end is the same


def _judged(folder: Path) -> list[tuple[int, ...]]:
    lines = [line for path in folder.glob("trials-*.jsonl") for line in path.read_text().splitlines()]
    return [tuple(json.loads(line)["value"]["layers"]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("selector", SEARCHES, ids=lambda selector: selector.kind)
@pytest.mark.parametrize("passes", [7.5, 12])
def test_a_search_ends_when_its_passes_are_spent(selector: Selector, passes: float, tmp_path: Path) -> None:
    model = tiny.model("llama", layers=6)
    plan = diagnose(model, documents(), 2, selector=selector, objective="kl", passes=passes, by="redundancy")
    tokens = sum(len(document.tokens) for document in documents())
    # The last judgement may cross the line: of one pass, or a gradient step of two; and the result may be judged.
    assert plan.forward_tokens <= (passes + 3) * tokens
    best = max((step for step in plan.search if len(step.layers) == 2), key=lambda step: step.value)
    assert plan.objective["value"] == best.value
    for _ in range(2):  # a search that starts, and one that knows all of it already, spend the same
        again = diagnose(
            model, documents(), 2, selector=selector, objective="kl", passes=passes, folder=tmp_path, by="redundancy"
        )
        assert same(again, plan)


def test_too_few_passes_for_any_answer_are_refused() -> None:
    with pytest.raises(RadistillError, match=r"diagnose\.passes is 2, but the selector greedy had judged no set of 2"):
        diagnose(tiny.model("llama"), documents(), 2, selector="greedy", passes=2, by="redundancy")


def test_what_a_search_spends_is_a_function_of_the_sets_alone(tmp_path: Path) -> None:
    model = tiny.model("llama")
    trials = Trials(model, documents(), KL, folder=tmp_path)
    tokens = trials.calibration_tokens
    trials.value([0, 1])
    assert trials.forward_tokens == tokens * 2
    trials.value([1, 0])
    assert trials.forward_tokens == tokens * 2
    trials.value([2])
    assert trials.forward_tokens == tokens * 2.5
    trials.stay_near([0, 1])  # run once more to remember what its layers hand on
    assert trials.forward_tokens == tokens * 3.5
    trials.value([0, 1, 3])  # starts at layer 3
    assert trials.forward_tokens == tokens * 3.75
    trials.start(limit=tokens)
    with pytest.raises(OutOfTokens):
        trials.value([0])
    assert trials.judge([0], limited=False).kl > 0


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid"])
def test_staying_near_a_set_changes_no_figure(family: str) -> None:
    model = tiny.model(family, layers=6)
    attention = list(model.anatomy.attention_layers)
    trials = Trials(model, documents(), KL, tokens_per_batch=30)
    for near in ([], attention[:1], attention[:2], attention[-2:]):
        if near:
            trials.stay_near(near)
        for layers in (attention[:1], attention[1:], [], attention):
            fresh = Trials(model, documents(), KL, tokens_per_batch=30).run(layers)
            found = trials.run(layers)
            assert found.kl == fresh.kl
            assert all(torch.equal(a, b) for a, b in zip(found.agreements, fresh.agreements, strict=True))


@pytest.mark.slow
def test_all_selectors_are_ranked_and_the_best_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model("llama", layers=6)
    plan = diagnose(model, documents(), 2, selector="all", objective="kl", passes=15, folder=tmp_path, by="redundancy")
    printed = capsys.readouterr().err
    everyone = [plan.selector["kind"], *(other.selector["kind"] for other in plan.alternatives)]
    assert sorted(everyone) == sorted(set(SELECTORS) - {"all", "curve", "kl-guided"})  # there are no fitted blocks
    values = [plan.objective["value"], *(other.value for other in plan.alternatives)]
    assert values == sorted(values, reverse=True)
    for other in plan.alternatives:
        alone = next(each for each in All().each(15, "redundancy") if each.kind == other.selector["kind"])
        own = diagnose(model, documents(), 2, selector=alone, objective="kl", passes=15, by="redundancy")
        assert (own.replace, own.kl, own.forward_tokens) == (other.replace, other.kl, other.forward_tokens)
    ranking = [line.split()[0] for line in printed.split("selector ")[-1].splitlines() if line.strip()]
    assert [word for word in ranking if word in SELECTORS] == everyone
    assert Plan.load(_saved(plan, tmp_path)) == plan
    assert same(diagnose(model, documents(), 2, selector="all", objective="kl", passes=15, by="redundancy"), plan)


def _saved(plan: Plan, folder: Path) -> Path:
    plan.save(folder / "plan.json")
    return folder / "plan.json"


def test_ctrl_c_in_a_comparison_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radistill.diagnosis.diagnose.Trials", Interrupted)
    model = tiny.model("llama", layers=6)
    monkeypatch.setattr(Interrupted, "at", 2)  # uniform and block influence judge only their result; two layers alone
    with pytest.raises(SearchInterrupted) as stopped:
        diagnose(model, documents(), 2, selector="all", objective="kl", passes=15, by="redundancy")
    plan = stopped.value.plan
    assert {plan.selector["kind"], *(other.selector["kind"] for other in plan.alternatives)} == {
        "uniform",
        "block-influence",
    }


def test_a_selector_that_needs_no_search_is_not_stopped_by_its_passes() -> None:
    model = tiny.model("llama")
    trials = Trials(model, documents(), KL)
    found = search(Uniform(), Problem(trials, 2), 0.1)
    assert found.selection.layers == [0, 2]
    assert found.judgement.kl == trials.run([0, 2]).kl
    with pytest.raises(RadistillError, match="allow more passes"):
        search(LeaveOneOut(), Problem(trials, 2), 0.1)


@pytest.mark.parametrize("selector", [Greedy(width=2, swaps=1), LeaveOneOut(), Gates(steps=3)], ids=lambda s: s.kind)
def test_every_search_is_an_optuna_study_that_grows_only_once(selector: Selector, tmp_path: Path) -> None:
    model = tiny.model("llama")
    plan = diagnose(model, documents(), 2, selector=selector, folder=tmp_path, by="redundancy")
    again = diagnose(model, documents(), 2, selector=selector, folder=tmp_path, by="redundancy")
    assert same(plan, again)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    [summary] = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert [trial.user_attrs["layers"] for trial in study.trials] == [step.layers for step in plan.search]
    assert [trial.value for trial in study.trials] == [step.value for step in plan.search]
    first = study.trials[0]
    assert [int(layer) for layer, skipped in first.params.items() if skipped] == plan.search[0].layers
    if selector.kind == "greedy":
        assert study.best_trial.value == max(step.value for step in plan.search)


def test_a_search_that_was_stopped_goes_on_in_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    with monkeypatch.context() as patched:
        patched.setattr("radistill.diagnosis.diagnose.Trials", Interrupted)
        patched.setattr(Interrupted, "at", 6)
        with pytest.raises(SearchInterrupted):
            diagnose(model, documents(), 2, selector="greedy", folder=tmp_path, by="redundancy")
    plan = diagnose(model, documents(), 2, selector="greedy", folder=tmp_path, by="redundancy")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    [summary] = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert [trial.user_attrs["layers"] for trial in study.trials] == [step.layers for step in plan.search]
