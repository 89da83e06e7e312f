"""Running selectors to an answer, also when they are stopped before their end, and ranking several."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, IntDistribution

from radistill.console import console, note, table
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, of_layers_alone
from radistill.diagnosis.shared_study import open_study, study_url
from radistill.diagnosis.trials import OutOfTokens, Trial, Trials
from radistill.errors import RadistillError
from radistill.files import hash_json


@dataclass(frozen=True)
class Found:
    """What a selector found, and what it cost.

    Attributes:
        selector: who found it.
        selection: the chosen layers, sorted, with their scores.
        judgement: of the draft in which they are skipped or replaced.
        value: its objective.
        history: the sets that were judged on the way.
        forward_tokens: calibration tokens through the whole model.
        seconds: wall time; little where the judgements were known from before.
        interrupted: whether the user stopped it.
    """

    selector: Selector
    selection: Selection
    judgement: Judgement
    value: float
    history: Sequence[Trial]
    forward_tokens: float
    seconds: float
    interrupted: bool


def search(
    selector: Selector, problem: Problem, passes: float | None = None, *, field: str = "diagnose.passes"
) -> Found:
    """Let a selector search, until it ends, its tokens are spent, or the user presses Ctrl-C.

    Whatever the selector, the answer to being stopped is the best set of the right size that it has judged.

    Args:
        selector: how to choose.
        problem: what is to be chosen; the count of its trials starts anew.
        passes: what the search may spend, in passes of the whole model over the calibration documents; None lets it
            end by itself. The judgement that crosses the line is still made.

    Raises:
        RadistillError: if the passes are spent before any set of the right size was judged.
        KeyboardInterrupt: if the user stops it before that.
    """
    started, trials = time.perf_counter(), problem.trials
    trials.start(None if passes is None else passes * trials.calibration_tokens)
    interrupted = False
    if problem.folder is not None:
        problem.folder.mkdir(parents=True, exist_ok=True)
        study = _live_study(selector, problem, problem.folder)
        next(study)
        trials.listener = study.send
    try:
        selection = selector.select(problem) if problem.budget else Selection([])
    except (OutOfTokens, KeyboardInterrupt) as stop:
        interrupted, best = isinstance(stop, KeyboardInterrupt), trials.best(problem.sizes)
        if best is None and interrupted:
            raise
        if best is None:
            things = "parts" if trials.parts else "layers"
            raise RadistillError(
                f"{field} is {passes:g}, but the selector {selector.kind} had judged no set of "
                f"{problem.budget} {things} by then; allow more passes, or choose a selector that needs fewer"
            ) from None
        # It could not hand out scores of its own: those of the layers that it judged by themselves.
        scores = {trial.layers[0]: trial.value for trial in trials.history if len(trial.layers) == 1} or None
        selection = Selection(best, scores, None if scores is None else of_layers_alone(trials))
        judged, goes_on = len(trials.history), ", and the same command goes on from there"
        note(
            f"{selector.kind}: interrupted; the best of {judged} judged sets is kept{goes_on if problem.folder else ''}"
            if interrupted
            else f"{selector.kind}: its {passes:g} passes are spent; the best of {judged} judged sets is taken"
        )
    judgement = trials.judge(selection.layers, limited=False)
    return Found(
        selector,
        replace(selection, layers=sorted(selection.layers)),
        judgement,
        trials.objective.value(judgement),
        trials.history,
        trials.forward_tokens,
        time.perf_counter() - started,
        interrupted,
    )


def _live_study(selector: Selector, problem: Problem, folder: Path) -> Generator[None, Trial, None]:
    """Take in each judged set, and append it to a study in SQLite: optuna-dashboard shows the search while it runs."""
    trials = problem.trials
    about = [list(problem.candidates), problem.budget, problem.free, problem.seed]
    key = [trials.identity, trials.objective.to_json(), selector.model_dump(mode="json"), about]
    distributions: dict[str, BaseDistribution] = {str(layer): IntDistribution(0, 1) for layer in problem.candidates}
    trial = yield
    study = open_study(study_url(folder), f"{selector.kind}-{hash_json(key)[:12]}")
    for _ in study.get_trials(deepcopy=False):  # a search that is resumed begins with the sets that are there
        trial = yield
    while True:
        study.add_trial(
            optuna.trial.create_trial(
                params={layer: int(int(layer) in trial.layers) for layer in distributions},
                distributions=distributions,
                value=trial.value,
                user_attrs={"layers": list(trial.layers)},
            )
        )
        trial = yield


def rank_selectors(selectors: Sequence[Selector], problem: Problem, passes: float) -> list[Found]:
    """Let each selector search with the same forward tokens to spend, and rank what they found.

    The arguments are those of `search`. Ctrl-C ends the comparison with the selectors that were run by then.

    Returns:
        The best first, by the objective; of equals, the one with the lower layers.
    """
    found: list[Found] = []
    for selector in selectors:
        try:
            found.append(search(selector, problem, passes))
        except KeyboardInterrupt:
            if not found:
                raise
            found[-1] = replace(found[-1], interrupted=True)
        if found[-1].interrupted:
            break
    return sorted(found, key=lambda one: (-one.value, one.selection.layers))


def print_ranking(found: Sequence[Found], trials: Trials) -> None:
    """Print a table of what the selectors found, on the terminal; "of 4" is the accepted tokens a round of 4."""
    headings = ("selector", "value", "KL", "accepted", "of 4", "passes", "seconds")
    made = table(f"value: {trials.objective.name}", *headings)
    for one in found:
        draft = one.judgement
        made.add_row(
            one.selector.kind,
            f"{one.value:.4f}",
            f"{draft.kl:.4f}",
            f"{draft.acceptance_rate:.1%}",
            f"{draft.mean_accepted_length[4]:.3f}",
            f"{one.forward_tokens / trials.calibration_tokens:.1f}",
            f"{one.seconds:.0f}",
        )
    console.print(made)
