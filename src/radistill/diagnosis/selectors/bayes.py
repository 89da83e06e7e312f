"""RAD's search: Bayesian optimisation of the skipped set (arXiv 2505.22135)."""

import warnings
from typing import Literal

import optuna
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field

from radistill.console import note, progress
from radistill.diagnosis.selectors.base import Problem, Selection, each_alone, most_redundant
from radistill.errors import RadistillError
from radistill.files import hash_json


class Bayes(BaseModel):
    """Optuna's Gaussian process over [0, 1]^layers; a proposal becomes a set by its largest entries."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["bayes"] = "bayes"
    trials: int = Field(default=60, ge=1, description="sets that are judged")
    startup: int = Field(default=10, ge=1, description="random sets before the Gaussian process proposes")
    warm_start: bool = Field(
        default=True,
        description="judge every single layer first and begin with the best of them; false is the search as published",
    )

    def most_passes(self, candidates: int, budget: int) -> int:
        """One for each judged set."""
        return self.trials + (candidates if self.warm_start else 0)

    def select(self, problem: Problem) -> Selection:
        """Maximise the objective over sets of `problem.budget` layers.

        The study lies in `problem.folder` as SQLite, so a search that was killed goes on where it was, and
        optuna-dashboard shows it live. The proposals are a function of the seed and of the completed trials alone:
        an interrupted search finds the same plan as an uninterrupted one.
        """
        scores = each_alone(problem) if self.warm_start else None
        study = self._study(problem)
        if scores is not None and not study.trials:
            low, high = min(scores.values()), max(scores.values())
            scale = high - low or 1.0
            study.enqueue_trial({str(layer): (score - low) / scale for layer, score in scores.items()})
        completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        for old in completed:
            problem.trials.value(old.user_attrs["layers"])  # known, so it costs nothing; the plan lists it
        done = len(completed)
        with progress(f"search for {problem.budget} layers", self.trials, "trials", min(done, self.trials)) as advance:
            while done < self.trials:
                study.sampler = _sampler(problem.seed, done, self.startup)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the Gaussian process warns when a fit does not converge
                    trial = study.ask({str(layer): _UNIT for layer in problem.candidates})
                layers = most_redundant({int(name): value for name, value in trial.params.items()}, problem.budget)
                trial.set_user_attr("layers", layers)
                study.tell(trial, problem.trials.value(layers))
                done += 1
                advance(1, f"best {study.best_value:.4f}")
        best = study.best_trial.user_attrs["layers"]
        if scores is None:
            return Selection(best, *self._marginal(problem, study))
        return Selection(best, scores, f"{problem.trials.objective.name} with only this layer's attention skipped")

    def _marginal(self, problem: Problem, study: optuna.Study) -> tuple[dict[int, float], str]:
        trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        scores = {}
        for layer in problem.candidates:
            skipped = [trial.values[0] for trial in trials if layer in trial.user_attrs["layers"]]
            kept = [trial.values[0] for trial in trials if layer not in trial.user_attrs["layers"]]
            if skipped and kept:
                scores[layer] = sum(skipped) / len(skipped) - sum(kept) / len(kept)
        return (
            scores,
            f"mean {problem.trials.objective.name} of the judged sets that skip the layer, less that of the others",
        )

    def _study(self, problem: Problem) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trials = problem.trials
        key = hash_json(
            {
                "trials": [trials.model.fingerprint, trials.calibration_hash, trials.objective.name],
                "problem": [list(problem.candidates), problem.budget, problem.seed],
                "search": [self.startup, self.warm_start],
            }
        )
        storage = None
        if problem.folder is not None:
            problem.folder.mkdir(parents=True, exist_ok=True)
            storage = f"sqlite:///{problem.folder / 'study.db'}"
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=f"bayes-{key[:12]}",
                direction="maximize",
                load_if_exists=True,
                sampler=_sampler(problem.seed, 0, self.startup),
            )
        except Exception as error:  # SQLAlchemy's own exceptions, which are no dependency of ours
            raise RadistillError(f"{storage}: cannot be used as an Optuna study ({error}); remove the file") from None
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            # It was being judged when an earlier run was killed; the seed of the next one depends on completed trials.
            study.tell(trial.number, state=TrialState.FAIL)
            note(f"search: trial {trial.number} was interrupted and is judged again")
            if trial.system_attrs.get("fixed_params"):
                study.enqueue_trial(trial.system_attrs["fixed_params"])
        return study


_UNIT = optuna.distributions.FloatDistribution(0.0, 1.0)


def _sampler(seed: int, completed: int, startup: int) -> optuna.samplers.BaseSampler:
    # A sampler's random state does not survive its process. A new one for each trial, seeded by how many are complete,
    # makes proposals a function of the study alone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(
            seed=(seed * 1_000_003 + completed) % 2**32, n_startup_trials=startup, deterministic_objective=True
        )
