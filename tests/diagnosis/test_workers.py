"""Several processes on one study: real ones, on a tiny model."""

import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

import tiny
from radistill.diagnosis import workers as workers_module
from radistill.diagnosis.diagnose import diagnose
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.objectives import Penalised, objective_from
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.selectors import Bayes
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.shared_study import WORKER, SharedStudy, open_study, study_url
from radistill.diagnosis.trials import Trials
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.errors import RadistillError
from radistill.models.loading import Model, load
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask

ACCEPTANCE = objective_from({"name": "acceptance"})


def documents(count: int = 4, length: int = 12) -> list[Document]:
    generator = torch.Generator().manual_seed(5)
    return [
        Document(str(n), tuple(torch.randint(4, 60, (length + n,), generator=generator).tolist()), length // 2)
        for n in range(count)
    ]


def trials_of(url: str, kind: str) -> list[optuna.trial.FrozenTrial]:
    names = [summary.study_name for summary in optuna.get_all_study_summaries(url)]
    (name,) = [name for name in names if name.startswith(f"bayes-{kind}-")]
    return optuna.load_study(study_name=name, storage=url).trials


def complete(url: str, kind: str) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in trials_of(url, kind) if trial.state is TrialState.COMPLETE]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(tiny.save("llama", tmp_path / "model", layers=8))


def first_wait_for_the_other(monkeypatch: pytest.MonkeyPatch, url: str, count: int, then: Callable[[], object]) -> None:
    """Let this process's first judgement take as long as the other one needs to come up and judge `count` layers."""
    run = Trials.run
    waiting = [True]

    def late(self: Trials, layers):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 120
        while waiting and time.monotonic() < deadline:
            if sum(trial.user_attrs["worker"] != WORKER for trial in complete(url, "layers")) >= count:
                waiting.clear()
                then()
            time.sleep(0.05)
        return run(self, layers)

    monkeypatch.setattr(Trials, "run", late)


@pytest.mark.slow
def test_two_processes_search_together(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    first_wait_for_the_other(monkeypatch, url, 3, lambda: None)
    plan = diagnose(
        model,
        documents(),
        3,
        objective=ACCEPTANCE,
        selector=Bayes(trials=14, startup=12, workers=2),
        folder=tmp_path / "run",
        by="redundancy",
    )
    layers, sets = complete(url, "layers"), complete(url, "sets")
    assert len(sets) == 14
    assert sorted(trial.user_attrs["layers"][0] for trial in layers) == list(range(8))
    assert all(trial.user_attrs["forward_tokens"] > 0 for trial in layers)
    by = Counter(trial.user_attrs["worker"] for trial in [*layers, *sets])
    assert len(by) == 2
    assert by[WORKER] < len(layers) + len(sets)
    assert not [trial for trial in trials_of(url, "sets") if trial.state is TrialState.RUNNING]

    # Whoever judged it, each set is in the plan with the value that this process finds.
    alone = Trials(model, documents(), ACCEPTANCE)
    assert len(plan.search) == 8 + 14
    for step in plan.search:
        assert step.value == pytest.approx(alone.value(step.layers))
    assert plan.selector["workers"] == 2
    assert max(step.value for step in plan.search if len(step.layers) == 3) == plan.objective["value"]

    # No set was being judged by two at the same time.
    judged = sorted(
        (t.datetime_start, t.datetime_complete, t.user_attrs["layers"]) for t in sets if t.user_attrs["forward_tokens"]
    )
    for number, (_, until, chosen) in enumerate(judged):
        assert all(start >= until for start, _, other in judged[number + 1 :] if other == chosen)


@pytest.mark.slow
def test_two_processes_judge_by_fitted_blocks(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    first_wait_for_the_other(monkeypatch, url, 3, lambda: None)
    blocks = fit_blocks(model, documents(8, 30), AlignSettings(steps=4, tokens_per_batch=100))
    settings = Bayes(trials=8, startup=8, workers=2)
    plan = diagnose(
        model, documents(), 3, objective="kl", selector=settings, folder=tmp_path / "run", substitutes=blocks
    )
    by = Counter(trial.user_attrs["worker"] for trial in [*complete(url, "layers"), *complete(url, "sets")])
    assert len(by) == 2
    alone = Trials(model, documents(), objective_from({"name": "kl"}), substitutes=blocks)
    for step in plan.search:
        assert step.value == pytest.approx(alone.value(step.layers))


@pytest.mark.slow
def test_a_killed_worker_blocks_nobody(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    started: list[workers_module.Workers] = []
    fallen = workers_module.Workers.fallen

    def watch(self: workers_module.Workers) -> tuple[str, ...]:
        started.append(self)
        return fallen(self)

    monkeypatch.setattr(workers_module.Workers, "fallen", watch)
    first_wait_for_the_other(monkeypatch, url, 1, lambda: os.kill(started[0]._processes[0][0].pid, signal.SIGKILL))
    plan = diagnose(
        model,
        documents(),
        3,
        objective=ACCEPTANCE,
        selector=Bayes(trials=8, startup=8, workers=2),
        folder=tmp_path / "run",
        by="redundancy",
    )
    assert started[0]._processes == []
    assert len(complete(url, "sets")) == 8
    for kind in ("layers", "sets"):
        assert not [trial for trial in trials_of(url, kind) if trial.state is TrialState.RUNNING]
    again = diagnose(
        model,
        documents(),
        3,
        objective=ACCEPTANCE,
        selector=Bayes(trials=8, startup=8),
        folder=tmp_path / "run",
        by="redundancy",
    )
    assert again.replace == plan.replace


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["judging", "still_proposing"])
def test_a_set_that_a_worker_began_beyond_the_last_is_given_up(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    end = workers_module.Workers.end
    begun: list[int] = []

    def one_more(self: workers_module.Workers) -> tuple[str, ...]:
        names = end(self)
        for name in names:
            kinds = [summary.study_name for summary in optuna.get_all_study_summaries(url)]
            trial = open_study(url, next(each for each in kinds if each.startswith("bayes-sets-"))).ask()
            if named:
                trial.set_user_attr("worker", f"{name}0")
            begun.append(trial.number)
        return names

    monkeypatch.setattr(workers_module.Workers, "end", one_more)
    diagnose(
        model,
        documents(),
        3,
        objective=ACCEPTANCE,
        selector=Bayes(trials=4, startup=4, workers=2),
        folder=tmp_path / "run",
        by="redundancy",
    )
    assert len(begun) == 1
    assert trials_of(url, "sets")[begun[0]].state is TrialState.FAIL
    assert len(complete(url, "sets")) == 4


@pytest.mark.slow
def test_the_same_search_with_another_folder_joins_by_storage(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    settings = Bayes(trials=6, startup=4, storage=url)
    first = diagnose(
        model, documents(), 3, objective=ACCEPTANCE, selector=settings, folder=tmp_path / "here", by="redundancy"
    )
    monkeypatch.setattr("radistill.diagnosis.shared_study.WORKER", "elsewhere:1:00000000")
    trials = Trials(model, documents(), ACCEPTANCE, folder=tmp_path / "there")
    trials.run = None  # type: ignore[assignment,method-assign]
    problem = Problem(trials, 3, 0, tmp_path / "there")
    assert list(settings.select(problem).layers) == first.replace  # all of it was judged before
    assert not (tmp_path / "here" / "study.db").exists()
    # One process with a storage of its own searches as one with a folder does.
    inside = diagnose(
        model,
        documents(),
        3,
        objective=ACCEPTANCE,
        selector=Bayes(trials=6, startup=4),
        folder=tmp_path / "inside",
        by="redundancy",
    )
    assert [step.layers for step in inside.search] == [step.layers for step in first.search]
    assert "storage" not in first.selector


class Asked:
    """Stands in for `Trials` and counts."""

    forward_tokens = 0.0

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.known: dict[tuple[int, ...], float] = {}

    def learn(self, layers: list[int], row: dict[str, float]) -> None:
        self.known[tuple(layers)] = row["acceptance_rate"]

    def judge(self, layers: list[int]) -> Judgement:
        return Judgement(ComponentMask.attention(layers), self.value(layers), {}, 0.0)

    def value(self, layers: list[int]) -> float:
        if tuple(layers) not in self.known:
            self.asked.append(layers)
        return self.known.get(tuple(layers), 0.5)


def shared(study: optuna.Study, trials: Asked) -> SharedStudy:
    def propose(trial: optuna.Trial) -> list[int]:
        return [trial.suggest_int("layer", 0, 1)]

    return SharedStudy(study, trials, propose, lambda completed, alone: optuna.samplers.RandomSampler(completed))  # type: ignore[arg-type]


def other_process(study: optuna.Study, layers: list[int] | None) -> optuna.Trial:
    trial = study.ask()
    if layers is not None:
        trial.set_user_attr("worker", "elsewhere:1:00000000")
        trial.set_user_attr("layers", layers)
    return trial


def test_a_set_that_another_judges_is_not_judged_too() -> None:
    study = open_study(None, "s")
    running = other_process(study, [0])
    trials = Asked()

    def finish() -> None:
        time.sleep(1.0)
        running.set_user_attr("judgement", {"acceptance_rate": 0.25})
        study.tell(running, 0.25)

    thread = threading.Thread(target=finish)
    thread.start()
    shared(study, trials).judge(lambda found: len(found) >= 4)
    thread.join()
    assert all(layers == [1] for layers in trials.asked)  # 0 came from the other one
    assert trials.known == {(0,): 0.25}
    values = {trial.user_attrs["layers"][0]: trial.value for trial in study.trials if trial.value is not None}
    assert values.get(0, 0.25) == 0.25


@pytest.mark.parametrize("layers", [[0], None])
def test_the_trials_of_a_dead_process_are_given_up(layers: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radistill.diagnosis.shared_study._SILENCE_SECONDS", 0.5)
    study = open_study(None, "s")
    other_process(study, layers)
    trials = Asked()
    search = shared(study, trials)
    dead = (lambda: None) if layers is None else lambda: search.give_up(lambda t: "elsewhere" in t.user_attrs["worker"])
    search.judge(lambda found: len(found) >= 3, look_after=dead)
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 1
    assert len(search.complete()) == 3


@pytest.mark.slow
def test_a_heartbeat_that_stops_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radistill.diagnosis.shared_study._SILENCE_SECONDS", 2)
    url = f"sqlite:///{tmp_path / 's.db'}"
    study = open_study(url, "s")
    running = other_process(study, [0])
    study._storage.record_heartbeat(running._trial_id)  # type: ignore[attr-defined]
    search = shared(open_study(url, "s"), Asked())
    search.judge(lambda found: len(found) >= 3)
    search.judge(lambda found: [t.state for t in study.trials].count(TrialState.FAIL) == 1)
    assert study.trials[0].state is TrialState.FAIL


def test_sets_that_come_first_keep_their_order_over_two_kills() -> None:
    """Killed once when a set waits for its turn, and once while it is judged."""
    study = open_study(None, "s")

    def start() -> SharedStudy:
        search = shared(study, Asked())
        search.give_up(lambda trial: True)
        search.first = [{"layer": 1}, {"layer": 0}]
        return search

    def killed(layers: list[int]) -> float:
        raise SystemExit

    study.enqueue_trial({"layer": 1})
    dying = start()
    dying._trials.value = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(SystemExit):
        dying.judge(lambda found: len(found) >= 2)
    last = start()
    last.judge(lambda found: len(found) >= 2)
    assert [trial.user_attrs["layers"] for trial in last.complete()] == [[1], [0]]


def test_a_set_that_two_processes_queued_at_the_same_moment_is_judged_once() -> None:
    study = open_study(None, "s")
    first = [{"layer": 1}, {"layer": 0}]
    for parameters in [first[0], first[0], first[1], first[1]]:
        study.enqueue_trial(parameters)
    search = shared(study, Asked())
    search.first = first
    reported: list[int] = []
    search.judge(lambda found: len(found) >= 4, lambda trial: reported.append(trial.number))
    assert [trial.user_attrs["layers"] for trial in search.complete()][:2] == [[1], [0]]
    assert reported == [0, 2, 4, 5]
    assert [trial.state for trial in study.trials].count(TrialState.PRUNED) == 2


def test_a_set_that_is_drawn_because_another_process_took_the_queued_one_is_not_judged() -> None:
    """It would be any set, and one that comes first would be judged twice."""
    study = open_study(None, "s")
    study.enqueue_trial({"layer": 1})
    search = shared(study, Asked())
    search.first = [{"layer": 1}, {"layer": 0}]
    draw, took = search._sampler, []

    def after_the_other(completed: int, alone: bool) -> optuna.samplers.BaseSampler:
        if not took:
            took.append(other_process(study, [1]))
            took[0].set_user_attr("judgement", {"acceptance_rate": 0.25})
            study.tell(took[0], 0.25)
        return draw(completed, alone)

    search._sampler = after_the_other
    search.judge(lambda found: len(found) >= 2)
    assert [trial.user_attrs["layers"] for trial in search.complete()] == [[1], [0]]
    assert [trial.system_attrs.get("fixed_params") for trial in search.complete()] == search.first
    assert [trial.state for trial in study.trials].count(TrialState.PRUNED) == 1


def test_a_process_that_was_given_up_goes_on() -> None:
    study = open_study(None, "s")
    trials = Asked()
    search = shared(study, trials)
    value = trials.value

    def suspended(layers: list[int]) -> float:
        if len(trials.asked) == 1:
            study.tell(study.trials[-1].number, state=TrialState.FAIL)
        return value(layers)

    trials.value = suspended  # type: ignore[method-assign]
    search.judge(lambda found: len(found) >= 3)
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 1


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    model = tiny.model("llama")
    with pytest.raises(RadistillError, match="workers is 2, but the study is only in memory"):
        diagnose(model, documents(), 2, selector=Bayes(trials=2, workers=2), by="redundancy")
    for url, message in [
        ("nonsense", "nonsense: cannot be used as an Optuna study"),
        (f"sqlite:///{tmp_path}/none/s.db", "cannot be used as an Optuna study"),
        ("nobase://me:secret@host/db", r"nobase://me:\*\*\*@host/db: cannot be used"),
    ]:
        with pytest.raises(RadistillError, match=message):
            diagnose(model, documents(), 2, selector=Bayes(trials=2, storage=url), by="redundancy")


@pytest.mark.slow
def test_a_worker_that_cannot_load_the_model_is_named_and_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = workers_module.Workers.fallen

    def when_it_has_ended(self: workers_module.Workers) -> tuple[str, ...]:
        for process, _ in self._processes:
            process.wait(120)
        return fallen(self)

    monkeypatch.setattr(workers_module.Workers, "fallen", when_it_has_ended)
    model = tiny.model("llama")  # in memory only
    plan = diagnose(
        model, documents(), 2, selector=Bayes(trials=8, startup=8, workers=2), folder=tmp_path, by="redundancy"
    )
    assert isinstance(plan, Plan)
    assert "search: a worker ended ('tiny llama': no such file" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_worker_searches_what_it_was_started_for(model: Model, tmp_path: Path) -> None:
    """Also where the number of layers is free: another problem would be another study."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    trials = Trials(model, documents(), Penalised(ACCEPTANCE, 0.01))
    problem = Problem(trials, 3, free=True)
    settings = Bayes(trials=4, startup=4, storage=url)
    settings.select(problem)
    judged = len(trials_of(url, "sets"))
    settings.select(pickle.loads(pickle.dumps(problem)))
    assert len(trials_of(url, "sets")) == judged == 4


@pytest.mark.parametrize("name", ["100% sure", "a%20b", "what?", "a#b", "[x]", "zwei Wörter", "user:word@host"])
def test_a_folders_study_lies_in_the_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    open_study(study_url(tmp_path / name), "s")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in (tmp_path / name).iterdir()] == ["study.db"]
