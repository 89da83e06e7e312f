"""The stage `evaluate`: what base, draft and hybrids are worth on the held-out data."""

from dataclasses import replace
from functools import partial
from typing import Any

from radistill.conversion import TARGETS, convert
from radistill.conversion.targets import find_initialisation, mixer_of
from radistill.evaluation.evaluate import Evaluation, evaluate
from radistill.files import write_json
from radistill.models.endings import end_tokens, turn_end_tokens
from radistill.models.loading import Model
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import evaluate_inputs
from radistill.pipeline.made import check_made, plan_of
from radistill.pipeline.servers import check_servers
from radistill.pipeline.steps import is_current, step_of
from radistill.pipeline.tasks import ask
from radistill.pipeline.training import start


def run_evaluate(context: Context) -> None:
    """Measure base, draft and hybrids on the held-out data; the base of a drafter is the model that it drafts for."""
    processes = context.processes
    inputs = processes.decide(partial(_inputs_of_evaluate, context))
    outputs = [context.folder.evaluation]
    if is_current(context, "evaluate", inputs, outputs):
        return
    processes.decide(partial(check_servers, context.recipe))
    with step_of(context, "evaluate", inputs, outputs) as replacing:
        main = context.hybrids[0]
        base = _reference(context)
        results = {"base": _evaluate(context, base, "base", written=_base_answers(context), tasks=True)}
        # Blocks that put out zero, whatever their geometry, are the attentions left out.
        left_out = plan_of(context, main).replace
        draft: Model = (
            context.load(context.files(main).start)
            if main.sees
            else convert(context.base, left_out, target=main.target, init=mixer_of(main.target).silent)
        )
        results["draft"] = _evaluate(context, draft, "draft")
        for arm in context.hybrids:
            starts_as_draft = arm.is_main and arm.align is None and find_initialisation(arm.init, arm.target).silent
            if arm.trainings and not starts_as_draft:
                name = f"{arm.name}_start"
                results[name] = _evaluate(context, start(context, arm)[0], name, generate=False)
            student = context.load(context.files(arm).student)
            results[arm.name] = _evaluate(context, student, arm.name, tasks=arm.is_main)
        if processes.is_main:
            replacing()
            rows = {name: result.to_json() for name, result in results.items()}
            write_json(context.folder.evaluation, rows | {"samples": _samples(context, results)})


def _inputs_of_evaluate(context: Context) -> dict[str, Any]:
    """What `evaluate` depends on, if it is as the stages before have left it."""
    inputs = evaluate_inputs(context)
    for arm in context.hybrids:
        trained = inputs["arms"][arm.name]
        distilled = trained["distill"] if arm.finetune else trained
        check_made(context, arm, "convert", distilled["convert"])
        check_made(context, arm, "finetune" if arm.finetune else "distill", trained)
    return inputs


def _reference(context: Context) -> Model:
    """The model that results are relative to: the base or, where the result is a drafter, its target."""
    main = context.hybrids[0]
    return context.base if TARGETS[main.target.kind].mixers else context.teacher(main.teacher)


def _base_answers(context: Context) -> list[tuple[int, ...]] | None:
    """The held-out responses, if they are what the base would answer again."""
    recipe = context.recipe
    same = (
        recipe.teacher is None
        and turn_end_tokens(context.base) == end_tokens(context.base)
        and recipe.data.responses.source == "teacher"
        and recipe.data.responses.server is None
        and recipe.data.responses.temperature == 0
        and recipe.data.responses.max_new_tokens == recipe.evaluate.max_new_tokens
    )
    if not same:
        return None
    return [document.tokens[document.response_start :] for document in context.splits.documents("heldout")]


def _evaluate(
    context: Context,
    model: Model,
    name: str,
    *,
    generate: bool = True,
    written: list[tuple[int, ...]] | None = None,
    tasks: bool = False,
) -> Evaluation:
    records = context.splits.heldout
    result = evaluate(
        model,
        _reference(context),
        [record.document for record in records],
        context.recipe.evaluate,
        verifiers=[record.example.verifier for record in records] if generate else None,
        written=written,
        cache=context.folder.answers(name),
        name=name,
        processes=context.processes,
    )
    # The rows lie where `radistill evaluate --tasks` leaves them.
    asks = tasks and context.recipe.evaluate.tasks
    if not asks:
        return result
    folder, is_base = context.folder.tasks / name, name == "base"
    return replace(result, tasks=ask(context.recipe, model, folder, context.processes, is_base=is_base))


def _samples(context: Context, results: dict[str, Evaluation]) -> list[dict[str, str]]:
    records = context.splits.heldout[: context.recipe.evaluate.samples]
    prompts = [list(record.document.tokens[: record.document.response_start]) for record in records]
    return [
        {"prompt": str(context.base.tokenizer.decode(prompt, skip_special_tokens=True))}
        | {name: result.answers[row] for name, result in results.items() if result.answers}
        for row, prompt in enumerate(prompts)
    ]
