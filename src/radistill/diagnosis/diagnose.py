"""Diagnosis: from a model, calibration documents and a budget to a plan."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from radistill.diagnosis.objectives import OBJECTIVES
from radistill.diagnosis.plan import Plan, SearchStep
from radistill.diagnosis.selectors import SELECTORS, Problem, Selection, Selector
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.anatomy import Anatomy
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.provenance import versions
from radistill.speculation.acceptance import DRAFT_LENGTHS, acceptance_rate, mean_accepted_length


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a search that had already found something.

    Attributes:
        plan: of the best set so far.
    """

    def __init__(self, plan: Plan) -> None:
        """Carry `plan` to whoever can save it."""
        super().__init__()
        self.plan = plan


def check_budget(budget: int, anatomy: Anatomy) -> None:
    """Check that `budget` attention layers can be replaced.

    Raises:
        RadistillError: if there are not enough, or the model has no attention at all.
    """
    count = len(anatomy.attention_layers)
    if count == 0:
        raise RadistillError("this model has no attention layers, so there is nothing to replace")
    if not 1 <= budget < count:
        raise RadistillError(
            f"diagnose.budget is {budget}, but this model has {count} attention layers: "
            f"it must be from 1 to {count - 1}, because a hybrid keeps at least one"
        )


def make_selector(name: str, **settings: object) -> Selector:
    """A selector by its name.

    Raises:
        RadistillError: listing the names that exist.
    """
    if name not in SELECTORS:
        raise RadistillError(f"selector {name!r} is unknown; choose one of {', '.join(sorted(SELECTORS))}")
    return SELECTORS[name].model_validate(settings)


def diagnose(
    model: Model,
    documents: Sequence[Document],
    budget: int,
    *,
    selector: Selector | str = "bayes",
    objective: str = "acceptance",
    seed: int = 0,
    tokens_per_batch: int = 2048,
    folder: Path | None = None,
) -> Plan:
    """Find the `budget` attention layers that the model can best do without.

    Args:
        model: the model to convert.
        documents: calibration documents, best with responses written by the model itself.
        budget: how many attention layers are to be replaced.
        selector: a name in `SELECTORS` or a selector with its settings.
        objective: a name in `OBJECTIVES`.
        seed: of every random choice; the same seed gives the same plan.
        tokens_per_batch: padded tokens in one forward pass.
        folder: where the search keeps its state, so that it can be resumed.

    Raises:
        RadistillError: for a budget that the model does not have, an unknown name, or no documents.
        SearchInterrupted: on Ctrl-C, with the best plan so far, once a set of the budget's size has been judged.
    """
    if isinstance(selector, str):
        selector = make_selector(selector)
    check_budget(budget, model.anatomy)
    started = time.perf_counter()
    trials = Trials(model, documents, objective, tokens_per_batch=tokens_per_batch, folder=folder)
    interrupted = False
    try:
        selection = selector.select(Problem(trials, model.anatomy.attention_layers, budget, seed, folder))
    except KeyboardInterrupt:
        judged = [trial for trial in trials.history if len(trial.layers) == budget]
        if not judged:
            raise
        interrupted, selection = True, Selection(max(judged, key=lambda trial: trial.value).layers)
    replace = sorted(selection.layers)
    draft = trials.run(replace)
    if not math.isfinite(draft.kl):
        raise RadistillError(f"{model.source}: without layers {replace} its logits are NaN or infinite; replace fewer")
    plan = Plan(
        model=model.source,
        model_fingerprint=model.fingerprint,
        num_layers=model.anatomy.num_layers,
        ssm_layers=list(model.anatomy.ssm_layers),
        replace=replace,
        scores=selection.scores,
        score_kind=selection.score_kind,
        objective={"name": objective, "value": OBJECTIVES[objective](draft)},
        acceptance_rate=acceptance_rate(draft.agreements),
        mean_accepted_length={length: mean_accepted_length(draft.agreements, length) for length in DRAFT_LENGTHS},
        kl=draft.kl,
        # A storage URL may hold a password, and says nothing about the plan.
        selector=selector.model_dump(mode="json", exclude={"storage"}),
        search=[
            SearchStep(trial=number, layers=list(trial.layers), value=trial.value)
            for number, trial in enumerate(trials.history)
        ],
        seconds=round(time.perf_counter() - started, 3),
        forward_tokens=round(trials.forward_tokens),
        calibration_hash=trials.calibration_hash,
        seed=seed,
        versions=versions(),
    )
    if interrupted:
        raise SearchInterrupted(plan)
    return plan
