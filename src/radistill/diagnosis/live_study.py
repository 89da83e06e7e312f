"""A search as an Optuna study while it runs, for selectors that need none themselves: optuna-dashboard shows it."""

from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, IntDistribution

from radistill.diagnosis.selectors.base import Problem, Selector
from radistill.diagnosis.shared_study import open_study, study_url
from radistill.diagnosis.trials import Trial
from radistill.files import hash_json


class LiveStudy:
    """Appends every judged set to a study in SQLite; a search that is resumed goes on where the study ends."""

    def __init__(self, folder: Path, selector: Selector, problem: Problem) -> None:
        """Nothing is opened before the first set.

        Args:
            folder: where `study.db` lies.
            selector: who searches.
            problem: what for; another problem is another study.
        """
        trials = problem.trials
        key = [
            trials.identity,
            trials.objective.to_json(),
            selector.model_dump(mode="json"),
            [list(problem.candidates), problem.budget, problem.free, problem.seed],
        ]
        self._url = study_url(folder)
        self._name = f"{selector.kind}-{hash_json(key)[:12]}"
        self._distributions: dict[str, BaseDistribution] = {
            str(layer): IntDistribution(0, 1) for layer in problem.candidates
        }
        self._study: optuna.Study | None = None
        self._known = 0

    def add(self, trial: Trial) -> None:
        """Append a set, unless it repeats what an earlier run of the same search has appended.

        Raises:
            RadistillError: if the file is no study.
        """
        if self._study is None:
            self._study = open_study(self._url, self._name)
            self._known = len(self._study.get_trials(deepcopy=False))
        if self._known:
            # A search is a function of its problem, so a resumed one begins with the sets that are there.
            self._known -= 1
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                params={layer: int(int(layer) in trial.layers) for layer in self._distributions},
                distributions=self._distributions,
                value=trial.value,
                user_attrs={"layers": list(trial.layers)},
            )
        )
