"""Diagnosis: from a model, calibration documents and a budget to a plan."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from radistill.diagnosis.objectives import (
    Objective,
    ObjectiveChoice,
    Penalised,
    make_objective,
    needs_retrieval,
    objective_from,
    objective_obstacle,
)
from radistill.diagnosis.plan import DRAFTS, Alternative, By, Plan, SearchStep
from radistill.diagnosis.search import Found, print_ranking, rank_selectors, search
from radistill.diagnosis.selectors import EQUAL_PASSES, SELECTORS, All
from radistill.diagnosis.selectors.base import Problem, Selector
from radistill.diagnosis.trials import MEMORY_GIB, Trials
from radistill.errors import RadistillError
from radistill.files import hash_json, read_kept, write_kept
from radistill.models.anatomy import Anatomy, Component
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.processes import ALONE, Processes
from radistill.provenance import versions
from radistill.speculation.acceptance import DRAFT_LENGTHS
from radistill.speculation.substitutes import Substitutes


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a search that had already found something.

    Attributes:
        plan: of the best set so far.
    """

    def __init__(self, plan: Plan) -> None:
        """Carry `plan` to whoever can save it."""
        super().__init__()
        self.plan = plan


def check_budget(
    budget: int | Literal["auto"],
    anatomy: Anatomy,
    keeps: int = 1,
    field: str = "diagnose.budget",
    least: int = 1,
    *,
    cut: bool = False,
) -> None:
    """Check that `budget`, as the recipe's `field` has it, attention layers can be replaced where `keeps` must stay.

    `auto` is one layer or more; a number has to be `least` or more. Where layers are `cut`, the message is about those.

    Raises:
        RadistillError: if there are not enough, or the model has no attention at all.
    """
    count = len(anatomy.attention_layers)
    if count == 0:
        raise RadistillError("this model has no attention layers, so there is nothing to replace")
    if not least <= (1 if budget == "auto" else budget) <= count - keeps:
        because = f", because a {'drafter' if cut else 'hybrid'} keeps at least {keeps}" if keeps else ""
        raise RadistillError(
            f"{field} is {budget}, but this model has {count} {'' if cut else 'attention '}layers: "
            f"it must be from {least} to {count - keeps}{because}"
        )


def make_selector(name: str, **settings: object) -> Selector | All:
    """A selector by its name.

    Raises:
        RadistillError: listing the names that exist.
    """
    if name not in SELECTORS:
        raise RadistillError(f"selector {name!r} is unknown; choose one of {', '.join(sorted(SELECTORS))}")
    return SELECTORS[name].model_validate(settings)


def contradiction(by: By, selector: Selector | All, objective: ObjectiveChoice) -> str | None:
    """What the way of judging layers and a selector or an objective say against one another, if they do."""
    reason = objective_obstacle(objective, by) or (None if isinstance(selector, All) else selector.obstacle(by))
    if reason is None:
        return None
    (other,) = DRAFTS.keys() - {by}
    return f"diagnose.by is {by}, but {reason}; change that, or set diagnose.by to {other}"


def diagnose(
    model: Model,
    documents: Sequence[Document],
    budget: int,
    *,
    selector: Selector | All | str = "greedy",
    objective: Objective | ObjectiveChoice = "kl",
    retrieval: Sequence[Document] = (),
    penalty: float | None = None,
    by: By = "replaceability",
    keeps: int = 1,
    substitutes: Substitutes | None = None,
    components: Sequence[Component] = (Component.ATTENTION,),
    passes: float | None = None,
    minutes: float | None = None,
    context_length: int = 1024,
    draft_length: int = 4,
    seed: int = 0,
    tokens_per_batch: int = 2048,
    memory_gib: float = MEMORY_GIB,
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> Plan:
    """Find the `budget` attention layers that can best be replaced.

    Args:
        model: the model to convert.
        documents: calibration documents, best with responses written by the model itself.
        budget: how many attention layers are to be replaced; with a penalty, how many at most.
        selector: a name in `SELECTORS` or a selector with its settings.
        objective: a name in `OBJECTIVES`, weights of several, or an objective.
        retrieval: texts whose response is to be found again, see `data.retrieval`; each judgement has their figures.
        penalty: what an attention layer that stays costs, in the objective's own unit; None fixes their number.
        keeps: how many attention layers must stay, as the target of the conversion says.
        by: whether the judged drafts have fitted blocks in place of attention (replaceability) or skip it (redundancy).
        substitutes: from `fit_blocks`, by replaceability; by redundancy None.
        components: what goes of each chosen layer, as the target of the conversion says.
        passes: what the search may spend, in passes of the whole model over the documents; None lets it end by itself,
            and gives each selector of `all` `EQUAL_PASSES`.
        minutes: the same in time; how many passes that is follows from the first one, and is kept in `folder`.
        context_length: tokens in the cache where the objective `throughput-modelled` times the components.
        draft_length: tokens drafted in a round where the objective `throughput-measured` decodes.
        seed: of every random choice; the same seed gives the same plan, unless its objective is a time.
        tokens_per_batch: padded tokens in one forward pass.
        memory_gib: as in `Trials`.
        folder: where the search keeps its state, so that it can be resumed.
        processes: who share the documents' batches; all must call this together, and all get the plan.

    Raises:
        RadistillError: for a budget that the model does not have, an unknown name, no documents, substitutes that are
            missing or would not be used, or a selector or an objective that cannot judge layers in this way.
        SearchInterrupted: on Ctrl-C, with the best plan so far, once a set of the budget's size has been judged.
    """
    if isinstance(selector, str):
        selector = make_selector(selector)
    cut = len(components) > 1
    check_budget(budget, model.anatomy, keeps, least=0 if cut else 1, cut=cut)
    started = time.perf_counter()
    if not isinstance(objective, Objective):
        if needs_retrieval(objective) and not retrieval:
            raise RadistillError(f"diagnose.objective is {objective}, which needs texts of data.retrieval")
        objective = shared_objective(processes, objective, model, context_length, folder, draft_length)
    _check_by(by, selector, objective, substitutes)
    if penalty is not None:
        objective = Penalised(objective, penalty)
    trials = Trials(
        model,
        documents,
        objective,
        retrieval=retrieval,
        tokens_per_batch=tokens_per_batch,
        memory_gib=memory_gib,
        folder=folder,
        substitutes=substitutes,
        components=components,
        processes=processes,
    )

    problem = Problem(trials, budget, seed, folder, free=penalty is not None)

    def search_for_plan() -> Plan:
        found = _searched(selector, problem, allowed_passes(trials, passes, minutes, folder))
        plan = _plan(problem, by, found, started)
        if any(one.interrupted for one in found):
            raise SearchInterrupted(plan)
        return plan

    return trials.lead(search_for_plan)


def _searched(selector: Selector | All, problem: Problem, passes: float | None) -> list[Found]:
    """What the selector finds, or each of all, the best first."""
    if not isinstance(selector, All):
        return [search(selector, problem, passes)]
    passes = EQUAL_PASSES if passes is None else passes
    by: By = "redundancy" if problem.trials.substitutes is None else "replaceability"
    found = rank_selectors(selector.each(passes, by), problem, passes)
    print_ranking(found, problem.trials)
    return found


def _plan(problem: Problem, by: By, found: Sequence[Found], started: float) -> Plan:
    """The plan of the best, which is the first, with the others beside it.

    Raises:
        RadistillError: if the draft of its set has logits that are not finite.
    """
    (best, *others), trials = found, problem.trials
    draft, model = best.judgement, trials.model
    if not math.isfinite(draft.kl):
        raise RadistillError(
            f"{model.source}: with layers {list(best.selection.layers)} {DRAFTS[by]}, its logits are NaN or "
            "infinite; replace fewer"
        )
    return Plan(
        model=model.source,
        model_fingerprint=model.fingerprint,
        num_layers=model.anatomy.num_layers,
        ssm_layers=list(model.anatomy.ssm_layers),
        by=by,
        components=[component.value for component in trials.components],
        scores=best.selection.scores,
        score_kind=best.selection.score_kind,
        objective=trials.objective.record(draft),
        sampled_acceptance=min(1.0, draft.sampled_acceptance),
        search=[
            SearchStep(trial=number, layers=list(trial.layers), value=trial.value)
            for number, trial in enumerate(best.history)
        ],
        alternatives=[
            Alternative(value=other.value, seconds=round(other.seconds, 3), **_in_plan(other)) for other in others
        ],
        seconds=round(time.perf_counter() - started, 3),
        calibration_hash=trials.calibration_hash,
        seed=problem.seed,
        versions=versions(),
        **_in_plan(best),
    )


def _in_plan(found: Found) -> dict[str, Any]:
    """What a plan says of what it takes, and of what it does not."""
    draft = found.judgement
    return {
        # A storage URL may hold a password, and says nothing about the plan.
        "selector": found.selector.model_dump(mode="json", exclude={"storage"}),
        "replace": list(found.selection.layers),
        "acceptance_rate": draft.acceptance_rate,
        "mean_accepted_length": {length: draft.mean_accepted_length[length] for length in DRAFT_LENGTHS},
        "kl": draft.kl,
        "forward_tokens": round(found.forward_tokens),
    }


def shared_objective(processes: Processes, *arguments: Any) -> Objective:
    """`make_objective` of these arguments; of several processes, the main one times what has to be timed."""
    return objective_from(processes.decide(lambda: make_objective(*arguments).to_json()))


def allowed_passes(trials: Trials, passes: float | None, minutes: float | None, folder: Path | None) -> float | None:
    """What a search may spend where its time is limited: as many passes as the full model's would take so long.

    A search that is resumed has as many as it began with. There are always enough to judge each layer alone, and then
    the best of them together.
    """
    if minutes is None:
        return passes
    path, key = None if folder is None else folder / "pace.json", hash_json([trials.identity, minutes])
    found = None if path is None else read_kept(path, key)
    if not isinstance(found, float | int):
        least = len(trials.model.anatomy.attention_layers) + 2.0
        found = max(least, round(60 * minutes / trials.seconds_a_pass, 1))
        if path is not None:
            write_kept(path, key, found)
    return found if passes is None else min(found, passes)


def _check_by(by: By, selector: Selector | All, objective: Objective, substitutes: Substitutes | None) -> None:
    if by not in DRAFTS:
        raise RadistillError(f"diagnose.by is {by!r}, but it must be one of {', '.join(DRAFTS)}")
    if found := contradiction(by, selector, objective.name):
        raise RadistillError(found)
    if by == "replaceability" and substitutes is None:
        raise RadistillError(
            "diagnose.by is replaceability, which needs a fitted block for each attention; give "
            'substitutes=fit_blocks(model, documents), or by="redundancy"'
        )
    if by == "redundancy" and substitutes is not None:
        raise RadistillError(
            "diagnose.by is redundancy, which skips attention and would not use the substitutes; leave one of both out"
        )
