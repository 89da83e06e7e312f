"""An Optuna study on which any number of processes judge sets of layers together, each set once.

Nothing but the storage is shared. A process that dies leaves a trial that is being judged for ever; the storage's
heartbeat, or the sibling that started it, gives it up, and the others go on.
"""

import re
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import getpid
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from radistill.console import note
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.checkpoint import one_line

WORKER = f"{socket.gethostname()}:{getpid()}:{uuid.uuid4().hex[:8]}"

_HEARTBEAT_SECONDS = 5
_SILENCE_SECONDS = 30  # without a sign of life, a worker counts as gone
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 60  # how long SQLite waits for another process's write
_LIVING = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


def open_study(url: str | None, name: str) -> optuna.Study:
    """Open a study that is maximised, or create it; `url` None keeps it in memory.

    Raises:
        RadistillError: if the storage cannot be used.
    """
    if re.search("://[^/?]*@[^/?]*@", url or ""):  # the rest of the password would be taken for a host, and shown
        raise RadistillError(f"{url}: write an @ in a password as %40")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    connection = {"connect_args": {"timeout": _LOCK_SECONDS}} if (url or "").startswith("sqlite") else None
    for left in (2, 1, 0):  # two processes that create the tables at the same moment disturb each other
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                storage = url and optuna.storages.RDBStorage(
                    url, connection, heartbeat_interval=_HEARTBEAT_SECONDS, grace_period=_SILENCE_SECONDS
                )
            return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        except Exception as error:  # the database driver's own exceptions, which are no dependency of ours
            if not left:
                raise RadistillError(
                    f"{url}: cannot be used as an Optuna study ({one_line(error)}); remove the file, or name another "
                    "storage"
                ) from None
            time.sleep(_POLL_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def study_url(folder: Path) -> str:
    """The Optuna storage of a folder's own study, `study.db`, whatever characters the folder's name has."""
    return sqlalchemy.URL.create("sqlite", database=str(folder / "study.db")).render_as_string()


class SharedStudy:
    """The part of a search that judges: it asks, makes sure that a set is judged once, and tells."""

    def __init__(
        self,
        study: optuna.Study,
        trials: Trials,
        propose: Callable[[optuna.Trial], list[int]],
        sampler: Callable[[int, bool], optuna.samplers.BaseSampler],
        first: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take part in `study`.

        Args:
            study: from `open_study`.
            trials: judges sets.
            propose: turns a trial into the set that it stands for.
            sampler: the sampler of the next trial, from the number of complete ones and whether nobody else is at work.
            first: parameters of trials that come before all others, in this order.
        """
        self.study = study
        self._trials = trials
        self._propose = propose
        self._sampler = sampler
        self.first = first
        self._taken_over: set[int] = set()
        self._own: set[int] = set()
        self._sighted: dict[int, float] = {}

    def complete(self) -> list[FrozenTrial]:
        """The judged trials, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])

    def give_up(self, of: Callable[[FrozenTrial], bool], wanted: bool = True) -> None:
        """Fail the running trials of processes that are known to be gone; say so where another one will be `wanted`."""
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if of(trial):
                with suppress(ValueError, UpdateFinishedTrialError):  # it has just been told after all
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    if wanted:
                        note(f"search: trial {trial.number} was interrupted and is judged again")

    def judge(
        self,
        enough: Callable[[Sequence[FrozenTrial]], bool],
        report: Callable[[FrozenTrial], object] = lambda trial: None,
        look_after: Callable[[], object] = lambda: None,
    ) -> None:
        """Judge sets until there are enough, together with whoever else is at work on this study.

        Args:
            enough: whether these trials suffice; asked of the complete ones, and of those with the ones in progress.
            report: called once for each complete trial, whoever judged it.
            look_after: called now and then, to find out about processes that have died.
        """
        while True:
            look_after()
            living = self._living()
            complete = [trial for trial in living if trial.state is TrialState.COMPLETE]
            for trial in complete:
                self._take_over(trial, report)
            if enough(complete):
                return
            if enough([trial for trial in living if trial.state is not TrialState.WAITING]):
                time.sleep(_POLL_SECONDS)  # others judge the last ones; should they fail, it is up to us
                continue
            alone = all(trial.state is not TrialState.RUNNING for trial in living)
            self._enqueue_first(living, alone)
            self.study.sampler = self._sampler(len(complete), alone)
            self._judge_one(enough)

    def _living(self) -> list[FrozenTrial]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        # A process that dies while it makes up its proposal has not shown its heartbeat yet.
        now = time.monotonic()
        self.give_up(
            lambda trial: (
                "worker" not in trial.user_attrs
                and now - self._sighted.setdefault(trial.number, now) > _SILENCE_SECONDS
            )
        )
        return self.study.get_trials(deepcopy=False, states=_LIVING)

    def _enqueue_first(self, living: Sequence[FrozenTrial], alone: bool) -> None:
        if alone and any(trial.state is TrialState.WAITING for trial in living):
            return  # a process was killed before it took it: the next one would come before it if it is given up again
        there = [trial.system_attrs.get("fixed_params") for trial in living]
        for parameters in self.first:
            if parameters not in there:  # at the beginning, and after the process that judged it died
                self.study.enqueue_trial(dict(parameters))
                return

    def _take_over(self, trial: FrozenTrial, report: Callable[[FrozenTrial], object]) -> None:
        """Enter a complete trial into the history of `trials`, whoever judged it; once."""
        if trial.number in self._taken_over:
            return
        self._taken_over.add(trial.number)
        if trial.number not in self._own:
            self._value_of(trial)
        report(trial)

    def _value_of(self, judged: FrozenTrial) -> float:
        layers, worker = judged.user_attrs["layers"], judged.user_attrs["worker"]
        if worker != WORKER:
            self._trials.learn(layers, judged.user_attrs["judgement"])
        return self._trials.value(layers)

    def _judge_one(self, enough: Callable[[Sequence[FrozenTrial]], bool]) -> None:
        judged = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal judged
            trial.set_user_attr("worker", WORKER)
            layers = self._propose(trial)
            trial.set_user_attr("layers", layers)
            same = self._same(trial.number, layers, enough)
            before = self._trials.forward_tokens
            value = self._trials.value(layers) if same is None else self._value_of(same)
            self._own.add(trial.number)
            judged = True
            trial.set_user_attr("judgement", self._trials.judge(layers).to_row())
            trial.set_user_attr("forward_tokens", self._trials.forward_tokens - before if same is None else 0.0)
            return value

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the Gaussian process warns when a fit does not converge
                self.study.optimize(objective, n_trials=1)
        except (ValueError, UpdateFinishedTrialError) as error:
            if not judged and not isinstance(error, UpdateFinishedTrialError):
                raise
            # This process was silent for so long (a suspended machine) that others gave it up; they judge in its place.

    def _same(
        self, number: int, layers: list[int], enough: Callable[[Sequence[FrozenTrial]], bool]
    ) -> FrozenTrial | None:
        """The complete trial of the same set, if there is one.

        Raises:
            optuna.TrialPruned: if another process is judging this set, those before this trial are enough, or two
                processes asked at the same moment: both put this set into the queue, or the other one took what this
                one had found there, and this trial was drawn before those that come first.
        """
        while True:
            living = self._living()
            before = [trial for trial in living if trial.number < number]
            queued = {trial.number: trial.system_attrs.get("fixed_params") for trial in living}
            earlier = [queued[trial.number] for trial in before]
            own = queued.get(number)
            astray = own in earlier if own is not None else any(first not in earlier for first in self.first)
            if astray or enough(before):
                raise optuna.TrialPruned
            running = [trial for trial in before if trial.state is TrialState.RUNNING]
            if any(trial.user_attrs.get("layers") == layers for trial in running):
                time.sleep(_POLL_SECONDS)
                raise optuna.TrialPruned  # the next proposal takes into account what is in progress
            if all("layers" in trial.user_attrs for trial in running):
                break
            time.sleep(_POLL_SECONDS)  # an earlier proposal that is still being made may be the same set
        return next(
            (t for t in living if t.state is TrialState.COMPLETE and t.user_attrs["layers"] == layers),
            None,
        )
