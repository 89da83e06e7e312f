"""Selectors on problems whose answer is known."""

import itertools
import math
from pathlib import Path

import optuna
import pytest
import torch
from pydantic import ValidationError

from radistill.diagnosis.diagnose import make_selector
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.selectors import SELECTORS, Bayes, Greedy, LeaveOneOut, Uniform
from radistill.diagnosis.selectors.base import Problem, most_redundant
from radistill.diagnosis.trials import Trial, Trials
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.speculation.masks import ComponentMask


class KnownTrials:
    """Stands in for `Trials`: a written-down value for every set, and a count of what was asked."""

    calibration_hash = "none"
    identity = ("none", "none")
    calibration_tokens = 10
    forward_tokens = 0.0
    substitutes = None
    components = (Component.ATTENTION,)
    parts = ()
    best = Trials.best
    called = Trials.called

    class objective:
        name = "acceptance"

        @staticmethod
        def to_json() -> dict[str, str]:
            return {"name": "acceptance"}

    class model:
        fingerprint = "none"

    def __init__(self, worth: dict[int, float], stop_after: int | None = None) -> None:
        self.worth = worth
        self.candidates = sorted(worth)
        self.history: list[Trial] = []
        self.near: list[tuple[int, ...]] = []
        self.stop_after = stop_after

    def value(self, layers) -> float:
        if self.stop_after is not None and len(self.history) >= self.stop_after:
            raise KeyboardInterrupt
        key = tuple(sorted(layers))
        value = sum(self.worth[layer] for layer in key) - 0.5 * (0 in key and 1 in key)
        self.history.append(Trial(key, value))
        return value

    def judge(self, layers) -> Judgement:
        key = tuple(sorted(layers))
        return Judgement(ComponentMask.attention(key), 0.0, {}, -sum(self.worth[layer] for layer in key))

    def stay_near(self, layers) -> None:
        self.near.append(tuple(sorted(layers)))


def problem(trials: KnownTrials, budget: int, folder: Path | None = None, seed: int = 0) -> Problem:
    return Problem(trials, budget, seed, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidates", "budget", "chosen"),
    [
        (range(30), 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (range(28), 14, list(range(0, 28, 2))),
        (range(4), 1, [0]),
        (range(4), 3, [0, 1, 2]),
        ([2, 5, 9], 2, [2, 5]),
    ],
)
def test_uniform_is_evenly_spaced(candidates, budget: int, chosen: list[int]) -> None:
    trials = KnownTrials(dict.fromkeys(candidates, 0.0))
    assert list(Uniform().select(problem(trials, budget)).layers) == chosen
    assert trials.history == []


def test_the_most_redundant_of_equals_are_the_lower_layers() -> None:
    assert most_redundant({3: 0.5, 1: 0.5, 2: 0.9, 0: 0.1}, 2) == [1, 2]
    assert most_redundant(dict.fromkeys(range(5), 0.0), 3) == [0, 1, 2]
    assert most_redundant({0: math.nan, 1: -9.0, 2: -math.inf}, 2) == [1, 2]


WORTH = {layer: (layer * 7 % 10) / 10 for layer in range(10)}


@pytest.mark.slow
def test_bayes_finds_the_best_set_where_layers_add_up() -> None:
    selection = Bayes(trials=8, startup=3).select(problem(KnownTrials(WORTH), 3))
    assert set(selection.layers) == {7, 4, 1}  # worth 0.9, 0.8, 0.7
    assert selection.scores is not None
    assert max(selection.scores, key=selection.scores.__getitem__) == 7


@pytest.mark.slow
def test_bayes_without_warm_start_learns_from_its_trials() -> None:
    trials = KnownTrials(WORTH)
    selection = Bayes(trials=20, startup=8, warm_start=False).select(problem(trials, 3))
    assert all(len(trial.layers) == 3 for trial in trials.history)
    values = [trial.value for trial in trials.history]
    assert sum(values[8:]) / 12 > sum(values[:8]) / 8 + 0.2  # proposed sets against random ones
    assert sum(WORTH[layer] for layer in selection.layers) == pytest.approx(max(values))
    assert selection.score_kind is not None
    assert "less that of the others" in selection.score_kind


@pytest.mark.slow
def test_the_same_seed_gives_the_same_search_and_another_seed_another() -> None:
    def search(seed: int) -> list[Trial]:
        trials = KnownTrials(WORTH)
        Bayes(trials=14, startup=4, warm_start=False).select(problem(trials, 3, seed=seed))
        return trials.history

    assert search(1) == search(1)
    assert search(1) != search(2)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [4, 12, 16, 19])
def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    selector = Bayes(trials=12, startup=4)
    whole = KnownTrials(WORTH)
    expected = selector.select(problem(whole, 3, tmp_path / "whole"))
    cut = KnownTrials(WORTH, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        selector.select(problem(cut, 3, tmp_path / "cut"))
    resumed = KnownTrials(WORTH)
    assert selector.select(problem(resumed, 3, tmp_path / "cut")) == expected
    assert resumed.history == whole.history


def test_the_study_is_an_optuna_study(tmp_path: Path) -> None:
    Bayes(trials=3, startup=2).select(problem(KnownTrials(WORTH), 3, tmp_path))
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    layers, sets = sorted(summary.study_name for summary in optuna.get_all_study_summaries(storage))
    assert len(optuna.load_study(study_name=layers, storage=storage).trials) == len(WORTH)
    study = optuna.load_study(study_name=sets, storage=storage)
    assert [len(trial.user_attrs["layers"]) for trial in study.trials] == [3, 3, 3]


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is not a database, " * 100)
    with pytest.raises(RadistillError, match=r"study\.db: cannot be used as an Optuna study"):
        Bayes(trials=2).select(problem(KnownTrials(WORTH), 3, tmp_path))


def test_unknown_selectors_and_settings_are_refused() -> None:
    with pytest.raises(
        RadistillError, match=r"selector 'best' is unknown; choose one of all, bayes, block-influence, curve, gates"
    ):
        make_selector("best")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        make_selector("bayes", trials=0)


def test_leave_one_out_takes_the_smallest_effects_by_kl() -> None:
    selection = LeaveOneOut().select(problem(KnownTrials(WORTH), 3))
    assert selection.layers == [1, 4, 7]
    assert selection.scores == pytest.approx(WORTH)


class Interacting(KnownTrials):
    """Pairs of layers interact at random, so that no set is best layer by layer."""

    def __init__(self, seed: int, count: int = 9) -> None:
        super().__init__(dict.fromkeys(range(count), 0.0))
        random = torch.Generator().manual_seed(seed)
        self.pairs = torch.randn((count, count), generator=random)

    def value(self, layers) -> float:
        key = tuple(sorted(layers))
        value = sum(self.pairs[a, b].item() for a, b in itertools.combinations_with_replacement(key, 2))
        self.history.append(Trial(key, value))
        return value


def forward_selection(trials: KnownTrials, budget: int) -> set[int]:
    """Forward selection as anyone would write it."""
    chosen: set[int] = set()
    while len(chosen) < budget:
        rest = [layer for layer in sorted(trials.worth) if layer not in chosen]
        values = [trials.value(chosen | {layer}) for layer in rest]
        chosen.add(rest[values.index(max(values))])
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_forward_selection_and_then_never_worse(seed: int) -> None:
    count, budget = 9, 4
    trials = Interacting(seed)
    singles = most_redundant({layer: trials.value([layer]) for layer in range(count)}, budget)
    start = max(forward_selection(trials, budget), set(singles), key=trials.value)
    forward = Greedy(width=count, swaps=0).select(problem(Interacting(seed), budget))
    assert set(forward.layers) == start
    swapped = Greedy(width=count, swap_width=budget).select(problem(Interacting(seed), budget))
    best = trials.value(swapped.layers)
    assert best >= trials.value(start)
    # With the whole neighbourhood tried, the end is a local optimum: no swap of one layer for another is better.
    chosen = set(swapped.layers)
    for removed, added in itertools.product(chosen, set(range(count)) - chosen):
        assert trials.value(chosen - {removed} | {added}) <= best


def test_greedy_tries_few_candidates_and_stays_near_its_set() -> None:
    trials = Interacting(0)
    Greedy(width=2, swaps=0).select(problem(trials, 4))
    tried = [len(trial.layers) for trial in trials.history]
    # Every layer alone; the best four of them; then, at each place, the set so far (but for the first) and two more.
    assert tried == [1] * 9 + [4] + [1, 1] + [1, 2, 2] + [2, 3, 3] + [3, 4, 4]
    assert [len(near) for near in trials.near] == [1, 2, 3]


@pytest.mark.parametrize("budget", [1, 8])
def test_greedy_at_the_ends_of_the_budget(budget: int) -> None:
    selection = Greedy().select(problem(Interacting(1), budget))
    assert len(selection.layers) == budget


def test_ties_go_to_the_lower_layers() -> None:
    equal = dict.fromkeys((2, 3, 5, 7), 0.25)
    for selector in (LeaveOneOut(), Greedy()):
        assert list(selector.select(problem(KnownTrials(equal), 2)).layers) == [2, 3]


def test_every_selector_is_registered_under_its_kind() -> None:
    assert {name: kind().kind for name, kind in SELECTORS.items()} == {name: name for name in SELECTORS}
