"""Which layers go: the trade-off over all budgets, and each hybrid's plan."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from radistill.console import note
from radistill.conversion import TARGETS
from radistill.diagnosis.diagnose import SearchInterrupted, allowed_passes, diagnose, shared_objective
from radistill.diagnosis.selectors import Curve
from radistill.diagnosis.trials import Trials
from radistill.distillation.blocks import fit_blocks
from radistill.evaluation.tradeoff import kept, trade_off
from radistill.files import hash_json, write_json
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import diagnose_inputs, tradeoff_inputs
from radistill.pipeline.made import budget_of, plan_of, promised
from radistill.pipeline.steps import is_current, step_of
from radistill.runs.arms import Arm
from radistill.speculation.substitutes import Substitutes


def run_tradeoff(context: Context) -> None:
    """Find the best set of every size for the main hybrid and measure it, where the recipe wants that."""
    recipe, main, path = context.recipe, context.hybrids[0], context.folder.tradeoff
    settings = recipe.diagnose
    if not settings.draws_tradeoff:
        return
    selector = main.selector if isinstance(main.selector, Curve) else Curve()
    processes = context.processes
    inputs = processes.decide(partial(tradeoff_inputs, context, selector))
    if is_current(context, "tradeoff", inputs, [path]):
        return
    with step_of(context, "tradeoff", inputs, [path]) as replacing:
        substitutes = _fit_blocks(context, main) if main.by == "replaceability" else None
        folder, splits = context.files(main).search, context.splits
        trials = Trials(
            context.base,
            splits.documents("calibration"),
            shared_objective(
                processes, settings.objective, context.base, settings.context_length, folder, settings.draft_length
            ),
            retrieval=splits.documents("calibration_retrieval"),
            tokens_per_batch=settings.tokens_per_batch,
            memory_gib=settings.memory_gib,
            folder=folder,
            substitutes=substitutes,
            components=TARGETS[main.target.kind].goes,
            processes=processes,
        )
        found = trade_off(
            trials,
            (splits.documents("heldout"), splits.documents("heldout_retrieval")),
            selector,
            state_numbers=TARGETS[main.target.kind].geometry(context.base.network.config, main.target).state_numbers,
            seed=recipe.seed,
            passes=processes.decide(lambda: allowed_passes(trials, settings.passes, settings.minutes, folder)),
            folder=folder,
        )
        keep = promised(recipe)
        best = kept(found["points"], keep) if settings.budget == "auto" else None
        if processes.is_main:
            replacing()
            write_json(path, found | {"by": main.by, "keep": keep, "budget": best and best["budget"]})


def choose(context: Context, arms: Sequence[Arm]) -> None:
    """Find the plan of each hybrid; hybrids that are chosen in the same way have one."""
    found: dict[str, Arm] = {}
    for arm in arms:
        step, plan = f"diagnose:{arm.name}", context.files(arm).plan
        inputs = context.processes.decide(partial(diagnose_inputs, context, arm))
        twin = found.setdefault(hash_json(inputs), arm)
        # A plan may be edited by hand, and then has another size: it is there, or it is not.
        if is_current(context, step, inputs if plan.exists() else None, []):
            continue
        with step_of(context, step, inputs, []) as replacing:
            if twin is not arm:
                if context.processes.is_main:
                    replacing()
                    plan_of(context, twin).save(plan)
                note(f"{arm.name}: has the layers of {twin.name}, which are chosen in the same way")
                continue
            _find_plan(context, arm, plan, replacing)


def _find_plan(context: Context, arm: Arm, path: Path, replacing: Callable[[], None]) -> None:
    settings, processes = context.recipe.diagnose, context.processes
    try:
        plan = diagnose(
            context.base,
            [document.blind for document in context.splits.documents("calibration")],
            processes.decide(partial(budget_of, context, arm)),
            selector=arm.selector,
            objective=settings.objective,
            retrieval=context.splits.documents("calibration_retrieval"),
            penalty=arm.penalty,
            by=arm.by,
            keeps=TARGETS[arm.target.kind].keeps,
            substitutes=_fit_blocks(context, arm) if arm.by == "replaceability" else None,
            components=TARGETS[arm.target.kind].goes,
            passes=settings.passes,
            minutes=settings.minutes,
            context_length=settings.context_length,
            draft_length=settings.draft_length,
            seed=context.recipe.seed,
            tokens_per_batch=settings.tokens_per_batch,
            memory_gib=settings.memory_gib,
            # What was judged for the trade-off is judged for all.
            folder=context.files(arm if arm in context.hybrids else context.hybrids[0]).search,
            processes=processes,
        )
    except SearchInterrupted as interrupted:
        replacing()
        interrupted.plan.save(path)
        note(f"{path}: the best plan so far; the same command searches on")
        raise
    if processes.is_main:
        replacing()
        plan.save(path)
    if not plan.replace:
        note(f"{arm.name}: cuts no layer; it is {context.recipe.model} as it is")
        return
    note(
        f"{arm.name}: {'cuts' if plan.whole_layers else 'replaces'} layer{'s' * (len(plan.replace) > 1)} "
        f"{', '.join(map(str, plan.replace))}; "
        f"the draft {plan.draft} has {plan.acceptance_rate:.1%} of its tokens accepted, KL {plan.kl:.3f}"
    )


def _fit_blocks(context: Context, arm: Arm) -> Substitutes:
    assert arm.align is not None  # the recipe is checked for it
    count = len(context.base.anatomy.attention_layers)
    note(f"diagnose: a block is fitted to each of {count} attentions first; the search judges drafts with these blocks")
    return fit_blocks(
        context.base,
        context.splits_of("align").documents("train"),
        arm.align,
        target=arm.target,
        init=arm.init,
        seed=context.recipe.seed,
        folder=context.folder.aligned,
        processes=context.processes,
    )
