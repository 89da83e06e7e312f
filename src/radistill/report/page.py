"""The report: one HTML page that holds everything and loads nothing, made from the files of a run folder alone."""

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from radistill.diagnosis.plan import DRAFTS
from radistill.files import write_text
from radistill.report.arms import arm_name
from radistill.report.figures.curves import finetune_figure, heldout_figure, loss_figure
from radistill.report.figures.fit import fit_figure
from radistill.report.figures.layers import layers_figure
from radistill.report.figures.recall import recall_figures
from radistill.report.figures.savings import savings_figures
from radistill.report.figures.search import search_figure
from radistill.report.numbers import duration, integer, layer_list, number, percent, significant, whole
from radistill.report.results import footnotes, rows_of, tiles_of
from radistill.report.run_folder import CONTENTS, RunFolder, mapping, read_run_folder, records
from radistill.report.samples import readable, samples_of
from radistill.report.savings import cache_rows, savings_note, speed_rows
from radistill.report.tasks import task_commands, task_rows, task_samples, task_sentence, task_settings
from radistill.report.verdict import verdict

# Without these a run has not come to its end.
_ESSENTIAL = ("run.json", "distill.json", "finetune.json", "evaluation.json")

Facts = list[tuple[str, str]]


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page is a function of the folder's small files (see `run_folder.CONTENTS`): no model is loaded and the
    same files give the same bytes. An unfinished run gives a page that says what is missing.

    Raises:
        RadistillError: if the folder or its plan is missing, or a file cannot be read; the file is named.
    """
    folder = read_run_folder(run_folder)
    path = folder.path / "report.html"
    write_text(path, render(folder))
    return path


def render(folder: RunFolder) -> str:
    """The page as HTML; every text from the folder is escaped."""
    samples, number_of_samples = samples_of(folder.evaluation, folder.baseline_init)
    tasks = task_rows(folder.results)
    html = _template().render(
        folder=folder,
        model=readable(folder.plan.get("model") or "unnamed model").rstrip("/").rpartition("/")[2],
        source=readable(folder.plan.get("model") or ""),
        verdict=[paragraph for paragraph in (*verdict(folder), task_sentence(tasks)) if paragraph],
        unfinished=any(name in folder.missing for name in _ESSENTIAL),
        missing=[(name, CONTENTS[name]) for name in folder.missing],
        tiles=tiles_of(folder),
        rows=rows_of(folder),
        footnotes=footnotes(folder),
        baseline_name=arm_name(folder.baseline_key, folder.baseline_init),
        outdated=outdated(folder),
        layers_figure=layers_figure(folder),
        search_figure=search_figure(folder),
        draft_is=DRAFTS.get(folder.by, ""),
        search_facts=_search_facts(folder),
        fit_figure=fit_figure(folder),
        fit_seconds=_fit_seconds(folder["align.json"]),
        fit_rows=sorted(records(folder["align.json"].get("layers")), key=lambda row: integer(row.get("layer")) or 0),
        heldout_figure=heldout_figure(folder),
        loss_figure=loss_figure(folder),
        finetune_figure=finetune_figure(folder),
        evaluations=_evaluations(folder),
        tasks=tasks,
        task_settings=task_settings(folder.results),
        recall_figures=recall_figures(folder.results),
        task_samples=task_samples(folder.results),
        commands=_commands(folder),
        savings_figures=savings_figures(folder),
        cache_rows=cache_rows(folder),
        speed_rows=speed_rows(folder),
        savings_note=savings_note(folder),
        samples=samples,
        number_of_samples=number_of_samples,
        stages=_stages(folder["run.json"]),
        provenance=_provenance(folder),
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
    environment.filters.update(
        number=number,
        significant=significant,
        percent=percent,
        whole=whole,
        duration=duration,
        layers=layer_list,
        readable=readable,
    )
    return environment.get_template("report.html.j2")


def outdated(folder: RunFolder) -> bool:
    """Whether the hybrid has changed, or is being changed, since it was evaluated."""
    stages = mapping(folder["run.json"].get("stages"))
    if not folder.evaluation or not stages:
        return False
    finished = {name: str(mapping(record).get("finished", "")) for name, record in stages.items()}
    needed = ["diagnose:rad", "convert:rad", "distill:rad", "evaluate"]
    needed += ["finetune:rad"] if folder.recipe.get("finetune") else []
    unfinished = any(name not in finished for name in needed)
    return unfinished or finished["evaluate"] < max(finished.values())


def _commands(folder: RunFolder) -> list[str]:
    """What has to be typed after the run to measure again what was measured with it."""
    again = f"{folder.path.resolve().name}-again"
    commands = task_commands(again, folder.results)
    if settings := mapping(folder["savings.json"].get("settings")):
        contexts = ",".join(str(integer(row.get("context"))) for row in records(folder["savings.json"].get("contexts")))
        options = [f"--{name.replace('_', '-')} {value or 0}" for name, value in settings.items()]
        commands.append(" ".join(["radistill savings", shlex.quote(again), "--contexts", contexts, *options]))
    return [readable(command) for command in commands]


def _fit_seconds(alignment: dict[str, Any]) -> float | None:
    """Of all blocks. The whole is the shorter where blocks lay there already, as after a search by replaceability."""
    whole_fit = number(alignment.get("seconds"))
    each = [number(row.get("seconds")) or 0.0 for row in records(alignment.get("layers"))]
    return None if whole_fit is None else max(whole_fit, sum(each))


def _search_facts(folder: RunFolder) -> Facts:
    """What the search was asked, what it spent, and what it found."""
    plan = folder.plan
    selector = dict(mapping(plan.get("selector")))
    kind, settings = _words(selector.pop("kind", "not stated")), _words(selector)
    objective = mapping(plan.get("objective"))
    trials = records(plan.get("search"))
    facts = [
        ("Selector", f"{kind} ({settings})" if selector else kind),
        ("Budget", f"{len(plan['replace'])} of {plan['num_layers']} layers"),
        ("Chosen by", _words(folder.by)),
        ("Sets judged", whole(len(trials)) if trials else "none"),
    ]
    if number(objective.get("value")) is not None:
        facts.append(("Objective of the plan", f"{_words(objective.get('name'))} {significant(objective['value'])}"))
    for key, name, form in (
        ("acceptance_rate", "Tokens of the draft accepted", percent),
        ("kl", "KL of the draft, calibration", lambda value: f"{significant(value)} nats/token"),
        ("seconds", "Time" if folder.by == "redundancy" else "Time, after the fit of the blocks", duration),
        ("forward_tokens", "Tokens through the model", whole),
    ):
        if number(plan.get(key)) is not None:
            facts.append((name, form(plan[key])))
    lengths = mapping(plan.get("mean_accepted_length"))
    if lengths:
        texts = (f"{significant(value)} of {readable(length)}" for length, value in lengths.items())
        facts.append(("Mean accepted tokens of a draft", ", ".join(texts)))
    return facts


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """Held-out figures during training, one row for each point of either hybrid."""
    rows: dict[float, dict[str, Any]] = {}
    for key, file in (("rad", folder["distill.json"]), ("baseline", folder["baseline/distill.json"])):
        for row in records(file.get("evaluations")):
            tokens = number(row.get("tokens"))
            if tokens is not None:
                rows.setdefault(tokens, {"tokens": tokens})[key] = row
    return [rows[tokens] for tokens in sorted(rows)]


def _stages(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished stages in the order in which they ran, each with its share of the longest one's time."""
    stages = [{"name": readable(name), **mapping(record)} for name, record in mapping(run.get("stages")).items()]
    longest = max((number(stage.get("seconds")) or 0.0 for stage in stages), default=0.0)
    for stage in stages:
        stage["share"] = f"{100 * (number(stage.get('seconds')) or 0.0) / longest:.1f}" if longest > 0 else "0"
    return stages


def _provenance(folder: RunFolder) -> list[tuple[str, Facts]]:
    """Seeds and hashes, versions, machine: named groups of facts, without the empty ones."""
    plan, run = folder.plan, folder["run.json"]
    identity = {
        "seed of the run": run.get("seed"),
        "seed of the plan": plan.get("seed"),
        "base model": plan.get("model"),
        "model fingerprint": plan.get("model_fingerprint"),
        "calibration hash": plan.get("calibration_hash"),
    }
    groups = {
        "Seeds and hashes": identity,
        "Versions": {"radistill": run.get("radistill"), **mapping(run.get("versions") or plan.get("versions"))},
        "Machine": {key.replace("_gib", " (GiB)"): value for key, value in mapping(run.get("machine")).items()},
    }
    facts = {
        name: [(_words(key), _words(value)) for key, value in group.items() if value is not None]
        for name, group in groups.items()
    }
    return [(name, found) for name, found in facts.items() if found]


def _words(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_words(item)}" for key, item in value.items()) or "none"
    return readable("none" if value is None else value)
