"""The report: one HTML page that holds everything and loads nothing, made from the files of a run folder alone."""

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from radistill.evaluation.comparison import Results, read_results
from radistill.evaluation.places import results_in
from radistill.files import hash_file, write_text
from radistill.report.figures.contexts import recall_figures, savings_figures
from radistill.report.figures.curves import finetune_figure, heldout_figure, loss_figure
from radistill.report.figures.fit import fit_figure, fit_rows
from radistill.report.figures.layers import layers_figure
from radistill.report.figures.search import search_figure
from radistill.report.figures.tradeoff import tradeoff_figures
from radistill.report.numbers import duration, integer, layer_list, number, percent, significant, whole, words
from radistill.report.results import footnotes, rows_of, tiles_of
from radistill.report.samples import samples_of
from radistill.report.savings import cache_rows, savings_note, speed_rows
from radistill.report.tasks import task_commands, task_rows, task_samples, task_sentence, task_settings
from radistill.report.tradeoff_table import promise, task_promise
from radistill.report.verdict import verdict
from radistill.runs.contents import Promise, TradeOff, mapping, records
from radistill.runs.folder import MAIN, RunFolder
from radistill.runs.read import Run, read_run
from radistill.texts import readable

# Without these a run has not come to its end.
_ESSENTIAL = ("run.json", "distill.json", "finetune.json", "evaluation.json")

_FIGURES = (layers_figure, search_figure, fit_figure, heldout_figure, loss_figure, finetune_figure)

Facts = list[tuple[str, str]]


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page is a function of the folder's small files (see `runs.read`): no model is loaded and the same files give the
    same bytes. An unfinished run gives a page that says what is missing, and so do damaged results of tasks.

    Raises:
        RadistillError: if the folder or its plan is missing, or a file cannot be read; the file is named.
    """
    folder = RunFolder(run_folder)
    problems: list[str] = []
    results = [read_results(name, of, problems) for name, of in results_in(folder.tasks).items()]
    write_text(folder.report, render(read_run(run_folder), results, problems))
    return folder.report


def render(run: Run, results: Sequence[Results] = (), problems: Sequence[str] = ()) -> str:
    """The page as HTML; every text from the folder is escaped.

    Args:
        run: what the run has left.
        results: of tasks.
        problems: what is wrong with results that are left out.
    """
    samples, number_of_samples = samples_of(run.evaluation, run.kind)
    left_out = list(problems)
    tasks = task_rows(results, left_out)
    recipe, tradeoff = run.recipe, _tradeoff(run)
    html = _template().render(
        # By the names under which the template has them.
        **{part.__name__: part(run) for part in (footnotes, outdated, *_FIGURES)},
        **{part.__name__: part(results) for part in (task_settings, recall_figures, task_samples)},
        **{part.__name__: part(run.savings) for part in (savings_figures, cache_rows, speed_rows, savings_note)},
        run=run,
        name=readable(run.path.resolve().name),
        results=results,
        target=recipe.target["kind"] if recipe is not None else "",
        model=readable(run.plan.model or "unnamed model").rstrip("/").rpartition("/")[2],
        verdict=[paragraph for paragraph in (*verdict(run), task_sentence(tasks)) if paragraph],
        unfinished=any(name in run.missing for name in _ESSENTIAL),
        tiles=tiles_of(run),
        rows=rows_of(run),
        tradeoff=None if tradeoff is None else promise(tradeoff),
        task_promise=task_promise(Promise.model_validate(run.promise)) if run.promise else None,
        tradeoff_figures=[] if tradeoff is None else tradeoff_figures(tradeoff, len(run.plan.replace)),
        draft_is=run.plan.draft,
        search_facts=_search_facts(run),
        fit_seconds=_fit_seconds(run.main["align"]),
        fit_rows=fit_rows(run),
        evaluations=_evaluations(run),
        tasks=tasks,
        left_out=left_out,
        commands=_commands(run, results),
        samples=samples,
        number_of_samples=number_of_samples,
        stages=_stages(run),
        provenance=_provenance(run),
    )
    return "\n".join(line.rstrip() for line in html.splitlines()) + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("radistill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, significant, percent, whole, duration, readable)
    environment.filters |= {"layers": layer_list, **{filter_.__name__: filter_ for filter_ in filters}}
    return environment.get_template("report.html.j2")


def outdated(run: Run) -> bool:
    """Whether what was evaluated is not what the steps before have left, or one of these is being done again."""
    if not run.evaluation or not run.steps:
        return False
    evaluated = run.inputs("evaluate")
    if f"diagnose:{MAIN}" not in run.steps or not _reads(run, None, "heldout", evaluated):
        return True
    for hybrid in run.hybrids:
        of = mapping(mapping(evaluated.get("arms")).get(hybrid.name))
        if "finetune" in of:
            if of != run.inputs(f"finetune:{hybrid.name}") or not _reads(run, "finetune", "train", of):
                return True
            of = mapping(of.get("distill"))
        converted = mapping(of.get("convert"))
        if (
            of != run.inputs(f"distill:{hybrid.name}")
            or not _reads(run, "distill", "train", of)
            or converted != run.inputs(f"convert:{hybrid.name}")
            or converted.get("replace") != hybrid.replaced
        ):
            return True
    return False


def _tradeoff(run: Run) -> TradeOff | None:
    """The trade-off that the hybrid was chosen from, or could have been; None where an earlier recipe has left it.

    The promise of an earlier recipe is left out.
    """
    if not run.tradeoff:
        return None
    found = TradeOff.model_validate(run.tradeoff)
    made, plan = run.inputs("tradeoff"), run.inputs(f"diagnose:{MAIN}")
    search = {name: value for name, value in mapping(made.get("search")).items() if name not in ("selector", "budget")}
    if plan and (
        any(plan.get(name) != value for name, value in search.items()) or not _reads(run, None, "heldout", made)
    ):
        return None
    promises = run.recipe is None or bool(run.recipe.keep)
    return found if promises else found.model_copy(update={"keep": {}, "budget": None})


def _reads(run: Run, stage: str | None, split: str, inputs: dict[str, Any]) -> bool:
    """Whether the documents of a stage are those of its inputs, if they are there."""
    own = stage if run.recipe is not None and stage in run.recipe.own_data else None
    file = RunFolder(run.path).data(own) / f"{split}.jsonl"
    return not file.is_file() or hash_file(file) == inputs.get(split)


def _commands(run: Run, results: Sequence[Results]) -> list[str]:
    """What has to be typed after the run to measure again what was measured with it."""
    again = f"{run.path.resolve().name}-again"
    commands = task_commands(again, results)
    if settings := mapping(run.savings.get("settings")):
        contexts = ",".join(str(integer(row.get("context"))) for row in records(run.savings.get("contexts")))
        options = [f"--{name.replace('_', '-')} {value or 0}" for name, value in settings.items()]
        commands.append(" ".join(["radistill savings", shlex.quote(again), "--contexts", contexts, *options]))
    return [readable(command) for command in commands]


def _fit_seconds(alignment: dict[str, Any]) -> float | None:
    """Of all blocks. The whole is the shorter where blocks lay there already, as after a search by replaceability."""
    whole_fit = alignment.get("seconds")
    return (
        None
        if whole_fit is None
        else max(whole_fit, sum(row.get("seconds") or 0.0 for row in alignment.get("layers", [])))
    )


def _search_facts(run: Run) -> Facts:
    """What the search was asked, what it spent, and what it found."""
    plan = run.plan
    if plan.whole_layers and not plan.replace:  # its figures would be of a draft that skips nothing
        return [("Budget", f"0 of {plan.num_layers} layers: the drafter is the model as it is")]
    selector = dict(plan.selector)
    kind, settings = words(selector.pop("kind", "not stated")), words(selector)
    facts = [
        ("Selector", f"{kind} ({settings})" if selector else kind),
        ("Budget", f"{len(plan.replace)} of {plan.num_layers} layers"),
        ("Chosen by", plan.by),
        ("Sets judged", whole(len(plan.search)) if plan.search else "none"),
        ("Objective of the plan", f"{words(plan.objective['name'])} {significant(plan.objective['value'])}"),
        ("Tokens of the draft accepted", percent(plan.acceptance_rate)),
        ("KL of the draft, calibration", f"{significant(plan.kl)} nats/token"),
        ("Time" if plan.by == "redundancy" else "Time, after the fit of the blocks", duration(plan.seconds)),
        ("Tokens through the model", whole(plan.forward_tokens)),
    ]
    if lengths := plan.mean_accepted_length:
        texts = (f"{significant(value)} of {length}" for length, value in lengths.items())
        facts.append(("Mean accepted tokens of a draft", ", ".join(texts)))
    return facts


def _evaluations(run: Run) -> list[dict[str, Any]]:
    """Held-out figures during training, one row for each point of any hybrid."""
    rows: dict[float, dict[str, Any]] = {}
    for hybrid in run.hybrids:
        for row in hybrid["distill"].get("evaluations", []):
            if (tokens := row.get("tokens")) is not None:
                rows.setdefault(tokens, {"tokens": tokens})[hybrid.name] = row
    return [rows[tokens] for tokens in sorted(rows)]


def _stages(run: Run) -> list[dict[str, Any]]:
    """Finished stages in the order in which they ran, each with its share of the longest one's time."""
    stages = [{"name": readable(name), **step} for name, step in run.steps.items()]
    longest = max((stage.get("seconds") or 0.0 for stage in stages), default=0.0)
    for stage in stages:
        stage["share"] = f"{100 * (stage.get('seconds') or 0.0) / longest:.1f}" if longest > 0 else "0"
    return stages


def _provenance(run: Run) -> list[tuple[str, Facts]]:
    """Seeds and hashes, versions, machine: named groups of facts, without the empty ones."""
    plan, record = run.plan, run.record
    identity = {
        "seed of the run": record.get("seed"),
        "seed of the plan": plan.seed,
        "base model": plan.model,
        "model fingerprint": plan.model_fingerprint,
        "calibration hash": plan.calibration_hash,
    }
    groups = {
        "Seeds and hashes": identity,
        "Versions": run.versions or plan.versions,
        "Machine": {key.replace("_gib", " (GiB)"): value for key, value in mapping(record.get("machine")).items()},
    }
    facts = {
        name: [(words(key), words(value)) for key, value in group.items() if value is not None]
        for name, group in groups.items()
    }
    return [(name, found) for name, found in facts.items() if found]
