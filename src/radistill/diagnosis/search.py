"""Running a selector to an answer, also when it is stopped before its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from radistill.console import note
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.live_study import LiveStudy
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, only_this_layer
from radistill.diagnosis.trials import OutOfTokens, Trial, Trials
from radistill.errors import RadistillError


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
    selector: Selector,
    trials: Trials,
    budget: int,
    *,
    seed: int,
    passes: float | None,
    folder: Path | None,
    free: bool = False,
) -> Found:
    """Let a selector search, until it ends, its tokens are spent, or the user presses Ctrl-C.

    Whatever the selector, the answer to being stopped is the best set of the right size that it has judged.

    Args:
        selector: how to choose.
        trials: judges sets; its count starts anew.
        budget: how many layers are to be chosen, or at most.
        seed: of every random choice.
        passes: what the search may spend, in passes of the whole model over the calibration documents; None lets it
            end by itself. The judgement that crosses the line is still made.
        folder: where a resumable search keeps its state.
        free: whether fewer layers than the budget may be chosen.

    Raises:
        RadistillError: if the passes are spent before any set of the right size was judged.
        KeyboardInterrupt: if the user stops it before that.
    """
    started = time.perf_counter()
    trials.start(None if passes is None else passes * trials.calibration_tokens)
    interrupted = False
    problem = Problem(trials, trials.candidates, budget, seed, folder, free)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        trials.listener = LiveStudy(folder, selector, problem).add
    try:
        selection = selector.select(problem) if budget else Selection([])
    except OutOfTokens:
        selection = Selection(_best(problem, selector, passes), *_alone(trials))
        note(
            f"{selector.kind}: its {passes:g} passes are spent; the best of {len(trials.history)} judged sets is taken"
        )
    except KeyboardInterrupt:
        best = trials.best(problem.sizes)
        if best is None:
            raise
        selection, interrupted = Selection(best, *_alone(trials)), True
        note(
            f"{selector.kind}: interrupted; the best of {len(trials.history)} judged sets is kept"
            + ("" if folder is None else ", and the same command goes on from there")
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


def _best(problem: Problem, selector: Selector, passes: float | None) -> Sequence[int]:
    best = problem.trials.best(problem.sizes)
    if best is None:
        raise RadistillError(
            f"diagnose.passes is {passes:g}, but the selector {selector.kind} had judged no set of {problem.budget} "
            "layers by then; allow more passes, or choose a selector that needs fewer"
        )
    return best


def _alone(trials: Trials) -> tuple[dict[int, float] | None, str | None]:
    """Scores for a search that could not hand out its own: the layers that it judged by themselves."""
    scores = {trial.layers[0]: trial.value for trial in trials.history if len(trial.layers) == 1}
    if not scores:
        return None, None
    return scores, f"{trials.objective.name} {only_this_layer(trials)}"
