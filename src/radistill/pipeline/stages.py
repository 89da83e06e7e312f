"""The stages of a run, in order. Each reads and leaves files in the run folder; what is current is not done again."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from radistill.console import note
from radistill.conversion import convert
from radistill.conversion.seeing import seeing_drafter
from radistill.conversion.targets import mixer_of
from radistill.data.prepare import prepare
from radistill.data.settings import DataSettings
from radistill.errors import RadistillError
from radistill.files import hash_file
from radistill.models.loading import Model, load_config
from radistill.models.vocabularies import check_same_tokenizer
from radistill.pipeline.choice import choose, run_tradeoff
from radistill.pipeline.context import Context
from radistill.pipeline.inputs import convert_inputs, data_inputs, split_file, splits_in
from radistill.pipeline.made import outputs_of, plan_of
from radistill.pipeline.outcome import run_evaluate
from radistill.pipeline.preflight import check_reference, drafts_as_it_is
from radistill.pipeline.promise import keep_tasks
from radistill.pipeline.servers import check_servers
from radistill.pipeline.steps import is_current, says_current, step_of
from radistill.pipeline.tasks import check_tasks
from radistill.pipeline.training import run_distill, run_finetune, save
from radistill.report.page import write_report
from radistill.runs.arms import Arm
from radistill.speculation.measure import check_drafter


def run_data(context: Context) -> None:
    """Write the training, calibration and held-out examples, with responses, and those that a stage has for itself."""
    recipe, processes = context.recipe, context.processes
    inputs = processes.decide(partial(data_inputs, context, recipe.data))
    outputs = splits_in(context.folder.data(), recipe.data)
    if not is_current(context, "data", inputs, outputs):
        processes.decide(partial(_check, context))
        with step_of(context, "data", inputs, outputs) as replacing:
            _prepare(context, recipe.data, context.folder.data(), replacing)
    for stage, settings in recipe.own_data.items():
        step, folder = f"data:{stage}", context.data_of(stage)
        # What the run is evaluated on must not be trained on.
        inputs = processes.decide(partial(_own_data_inputs, context, settings))
        outputs = splits_in(folder, settings)
        if is_current(context, step, inputs, outputs):
            continue
        with step_of(context, step, inputs, outputs) as replacing:
            without = {record.example.prompt for record in context.splits.heldout}
            _prepare(context, settings, folder, replacing, without)


def _own_data_inputs(context: Context, settings: DataSettings) -> dict[str, Any]:
    return {**data_inputs(context, settings), "without": hash_file(split_file(context, "heldout"))}


def _prepare(
    context: Context,
    settings: DataSettings,
    folder: Path,
    replacing: Callable[[], object],
    without: Collection[str] = (),
) -> None:
    recipe, processes = context.recipe, context.processes
    teacher, seed = _writer(context, recipe.teacher, settings), recipe.seed
    prepare(teacher, settings, seed=seed, folder=folder, without=without, replacing=replacing, processes=processes)


def _writer(context: Context, source: str | None, settings: DataSettings) -> Model:
    """Who gives the tokens of the data, and the responses: without weights, where these are not needed for it."""
    is_read = source == context.recipe.teacher and settings.responses.needs_weights
    return (context.teacher if is_read else context.served)(source)


def _check(context: Context) -> None:
    """Refuse what cannot be done before anything is computed for it."""
    recipe, base = context.recipe, context.base
    check_servers(recipe)
    check_tasks(recipe, base.context_length)
    for source in {arm.teacher for arm in context.hybrids if arm.teacher}:
        teacher = _writer(context, source, recipe.data)  # which is not read a second time to write
        check_same_tokenizer(teacher, base)
        if any(arm.teacher == source and drafts_as_it_is(recipe, arm) for arm in context.hybrids):
            check_drafter(teacher, base)
    for arm in context.hybrids:
        if arm.distill is not None and arm.distill.select is not None:
            reference, own = arm.distill.select.reference, context.folder.path.resolve()
            try:
                if not Path(reference).resolve().is_relative_to(own):  # or an arm before this one may leave it
                    load_config(reference, recipe.trust_remote_code)
            except RadistillError as error:
                raise RadistillError(f"{arm.field('distill')}.select.reference: {error}") from None
            check_reference(reference, recipe.model)


def run_diagnose(context: Context) -> None:
    """Choose the layers of each hybrid; hybrids that are chosen in the same way have one plan."""
    settings = context.recipe.diagnose
    if settings.budget == "auto":
        run_tradeoff(context)  # which finds it
    if settings.keep is not None and settings.keep.tasks:
        keep_tasks(context, settings.keep.tasks, partial(_trained, context))
    choose(context, context.hybrids)


def _trained(context: Context, arm: Arm) -> None:
    """Choose the layers of a hybrid, convert and train it."""
    choose(context, [arm])
    for stage in (run_convert, run_distill, run_finetune):
        stage(context, [arm])


def run_convert(context: Context, arms: Sequence[Arm] = ()) -> None:
    """Build each hybrid, or these; of several processes, the main one does."""
    context.processes.decide(partial(_convert, context, arms))


def _convert(context: Context, arms: Sequence[Arm]) -> None:
    for arm in arms or context.hybrids:
        files, step = context.files(arm), f"convert:{arm.name}"
        inputs, outputs = convert_inputs(context, arm), outputs_of(context, arm, "convert")
        if says_current(context, step, inputs, outputs):
            continue
        blocks = mixer_of(arm.target).phrase
        with step_of(context, step, inputs, outputs, blocks=blocks) as replacing:
            plan = plan_of(context, arm)
            plan.check(context.base.anatomy, str(files.plan))
            student: Model = (
                seeing_drafter(context.teacher(arm.teacher), context.base, context.recipe.seed)
                if arm.sees
                else convert(context.base, plan.replace, target=arm.target, init=arm.init, seed=context.recipe.seed)
            )
            replacing()
            save(student, files.start)


def run_report(context: Context) -> None:
    """Write report.html. It takes seconds, so it is always written anew."""
    if not context.processes.is_main:
        return
    plan = context.files(context.hybrids[0]).plan
    if not plan.exists():
        raise RadistillError(f"{plan}: no such file; run `radistill diagnose` first")
    if not context.folder.recipe.exists():
        context.recipe.save(context.folder.recipe)
    note(f"report: {write_report(context.folder.path)}")


STAGES: dict[str, Callable[[Context], None]] = {
    "data": run_data,
    "tradeoff": run_tradeoff,
    "diagnose": run_diagnose,
    "convert": run_convert,
    "distill": run_distill,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    "report": run_report,
}
