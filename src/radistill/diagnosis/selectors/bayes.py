"""RAD's search: Bayesian optimisation of the set of layers that go (arXiv 2505.22135)."""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import optuna
from optuna.trial import FrozenTrial
from pydantic import Field

from radistill.console import note, progress
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, most_redundant, of_layers_alone
from radistill.diagnosis.shared_study import WORKER, SharedStudy, open_study, study_url
from radistill.diagnosis.workers import working
from radistill.effects import NOT_COUNTED
from radistill.errors import RadistillError
from radistill.files import hash_json


class Bayes(Selector):
    """Optuna's Gaussian process over [0, 1]^layers; a proposal becomes a set by its largest entries."""

    kind: Literal["bayes"] = "bayes"
    trials: int = Field(default=60, ge=1, description="sets that are judged")
    startup: int = Field(default=10, ge=1, description="random sets before the Gaussian process proposes")
    warm_start: bool = Field(
        default=True,
        description="judge every single layer first and begin with the best of them; false is the search as published",
    )

    # By how many processes, and where they kept their study, makes no other plan of a finished one.
    workers: Annotated[int, NOT_COUNTED] = Field(
        default=1,
        ge=1,
        le=256,
        description="processes on this machine that judge sets at once; a search by several cannot be repeated exactly",
    )
    storage: Annotated[str | None, NOT_COUNTED] = Field(
        default=None,
        description="Optuna storage URL; the same search on other machines that name it joins in. "
        "Null keeps the study in the run folder",
    )

    def most_passes(self, candidates: int, sizes: range) -> int:
        """One for each judged set."""
        return self.trials + (candidates if self.warm_start else 0)

    def select(self, problem: Problem) -> Selection:
        """Maximise the objective over sets of `problem.budget` layers; where their number is free, a proposal stands
        for its entries above a half.

        The study lies in `problem.folder` as SQLite, or where `storage` says, so a search that was killed goes on where
        it was, and optuna-dashboard shows it live. As long as one process works on it, the proposals are a function of
        the seed and of the completed trials alone: an interrupted search finds the same plan as an uninterrupted one.
        With more of them, proposals also depend on who is faster.

        Raises:
            RadistillError: if the storage cannot be used, or several workers have none.
        """
        problem.trials.listener = None  # each set is a trial of this search's own study
        url = self.storage
        if url is None and problem.folder is not None:
            problem.folder.mkdir(parents=True, exist_ok=True)
            url = study_url(problem.folder)
        if self.workers > 1 and url is None:
            raise RadistillError(
                f"diagnose.selector.workers is {self.workers}, but the study is only in memory; "
                "give a folder or a storage"
            )
        singles = self._shared(url, problem, "layers") if self.warm_start else None
        sets = self._shared(url, problem, "sets")
        as_one_worker = self.model_copy(update={"workers": 1, "storage": url})
        with working(partial(as_one_worker.select, problem), self.workers) as workers:

            def look_after() -> None:
                gone = workers.fallen()
                for shared in filter(None, (singles, sets) if gone else ()):
                    shared.give_up(lambda trial: _worker(trial).startswith(gone))

            scores = None
            if singles is not None:
                scores = self._single_layers(problem, singles, look_after)
                sets.first = [_relaxed(scores)]
            with progress(f"search for {problem.budget} layers", self.trials, "trials") as advance:
                sets.judge(
                    lambda trials: len(trials) >= self.trials,
                    lambda trial: advance(1, f"best {sets.study.best_value:.4f}"),
                    look_after,
                )
            # One may just have asked for a set beyond the last, and would leave it in progress for ever.
            gone = workers.end()
            for shared in filter(None, (singles, sets)):
                shared.give_up(lambda trial: self.storage is None or _worker(trial).startswith(gone), wanted=False)
        best = sets.study.best_trial.user_attrs["layers"]
        if scores is None:
            return Selection(best, *self._marginal(problem, sets.complete()))
        return Selection(best, scores, of_layers_alone(problem.trials))

    def _single_layers(
        self, problem: Problem, singles: SharedStudy, look_after: Callable[[], None]
    ) -> dict[int, float]:
        wanted = set(problem.candidates)
        singles.first = [{"layer": layer} for layer in problem.candidates]
        with progress("each layer alone", len(wanted), "layers") as advance:
            singles.judge(
                lambda trials: wanted <= {_layer(trial) for trial in trials},
                lambda trial: advance(1, f"layer {_layer(trial)}: {trial.values[0]:.4f}"),
                look_after,
            )
        found = {_layer(trial): trial.values[0] for trial in singles.complete()}
        return {layer: found[layer] for layer in problem.candidates}

    def _marginal(self, problem: Problem, trials: Sequence[FrozenTrial]) -> tuple[dict[int, float], str]:
        scores = {}
        for layer in problem.candidates:
            gone = [trial.values[0] for trial in trials if layer in trial.user_attrs["layers"]]
            kept = [trial.values[0] for trial in trials if layer not in trial.user_attrs["layers"]]
            if gone and kept:
                scores[layer] = sum(gone) / len(gone) - sum(kept) / len(kept)
        name = problem.trials.objective.name
        return scores, f"mean {name} of the judged sets with this layer, less that of the others"

    def _shared(self, url: str | None, problem: Problem, kind: Literal["layers", "sets"]) -> SharedStudy:
        trials = problem.trials
        key = [trials.identity, trials.objective.to_json(), list(problem.candidates), problem.seed]
        if kind == "sets":
            key += [problem.budget, problem.free, self.startup, self.warm_start]
        study = open_study(url, f"bayes-{kind}-{hash_json(key)[:12]}")
        study.set_user_attr("model", trials.model.fingerprint)
        study.set_user_attr("calibration", trials.calibration_hash)

        def layer(trial: optuna.Trial) -> list[int]:
            return [trial.suggest_categorical("layer", list(problem.candidates))]

        def layers(trial: optuna.Trial) -> list[int]:
            point = {each: trial.suggest_float(str(each), 0.0, 1.0) for each in problem.candidates}
            wanted = sum(entry > 0.5 for entry in point.values()) if problem.free else problem.budget
            return most_redundant(point, min(max(wanted, 1), problem.budget))

        def sampler(completed: int, alone: bool) -> optuna.samplers.BaseSampler:
            seed = _seed(problem.seed, completed, alone)
            return _sampler(seed, self.startup) if kind == "sets" else optuna.samplers.RandomSampler(seed)

        shared = SharedStudy(study, trials, layer if kind == "layers" else layers, sampler)
        if self.storage is None:
            # The folder is this process's own, so whoever was at work here is gone.
            shared.give_up(lambda trial: True)
        elif kind == "sets":
            note(f"search: {len(shared.complete())} of {self.trials} sets are judged in {self.storage}")
        return shared


def _worker(trial: FrozenTrial) -> str:
    name: str = trial.user_attrs.get("worker", "")
    return name


def _layer(trial: FrozenTrial) -> int:
    """The layer that a trial of the single layers is about; of an enqueued one, from the moment that it is there."""
    return int(trial.system_attrs.get("fixed_params", trial.params).get("layer", -1))


def _relaxed(scores: dict[int, float]) -> dict[str, float]:
    """The point of [0, 1]^layers whose largest entries are the best single layers."""
    low, high = min(scores.values()), max(scores.values())
    scale = high - low or 1.0
    return {str(layer): (score - low) / scale for layer, score in scores.items()}


def _seed(seed: int, completed: int, alone: bool) -> int:
    # A sampler's random state does not survive its process. A new one for each trial, seeded by how many are complete,
    # makes proposals a function of the study alone. Where others are at work, each goes its own way.
    own = 0 if alone else int(hash_json([WORKER, time.monotonic_ns()])[:8], 16)
    return (seed * 1_000_003 + completed + own) % 2**32


def _sampler(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
