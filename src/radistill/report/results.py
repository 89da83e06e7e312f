"""The table of results and the sentences below it: what each figure is, over what, and what does not compare."""

from typing import Any, NamedTuple

from radistill.report.model_results import START, ModelResult, model_results
from radistill.report.numbers import (
    CONTEXT_TOKENS,
    absent,
    bytes_,
    cache_mib,
    interval,
    number,
    percent,
    significant,
    whole,
    words,
)
from radistill.report.verdict import cache_saving
from radistill.runs.folder import MAIN
from radistill.runs.read import HybridResults, Run


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The rows of the table, one for each model, as text."""
    return [
        {
            "key": arm.key,
            "name": arm.name,
            "remark": _remark(arm.key, run),
            **{metric: significant(arm.metrics.get(metric)) for metric in ("kl", "perplexity")},
            **{metric: _bare_percent(arm, metric) for metric in ("agreement", "sampled_acceptance", "exact_match")},
            "exact_match_details": arm.exact_match_details,
            "kv_bytes": whole(arm.metrics.get("kv_bytes_per_token")),
            "kv_mib": cache_mib(arm.metrics.get("kv_bytes_per_token")),
        }
        for arm in model_results(run.evaluation, run.kind).values()
    ]


class Tile(NamedTuple):
    """One key figure."""

    label: str
    value: str
    unit: str
    beside: str


def tiles_of(run: Run) -> list[Tile]:
    """The figures that a reader wants first; those that were not measured are left out."""
    arms = model_results(run.evaluation, run.kind)
    hybrid = arms.get(MAIN)
    if hybrid is None:
        return []
    tiles = []
    start = (run.judged, "blocks fitted" if run.judged == START else "at start")
    if (cache := hybrid.value("kv_bytes_per_token")) is not None:
        value, unit = bytes_(cache).split()
        saving = cache_saving(arms)
        beside = f"base {bytes_(arms['base'].metrics['kv_bytes_per_token'])}, {percent(-saving, 0)}" if saving else ""
        tiles.append(Tile("KV cache per token", value, unit, beside))
    if (kl := hybrid.value("kl")) is not None:
        tiles.append(Tile("KL to the base", significant(kl), "nats/token", _beside(arms, "kl", *start)))
    for label, metric, other in (
        ("Greedy agreement", "agreement", start),
        ("Exact match", "exact_match", ("base", "base")),
    ):
        if hybrid.value(metric) is not None:
            tiles.append(Tile(label, _bare_percent(hybrid, metric), "%", _beside(arms, metric, *other)))
    for task, figures in hybrid.tasks.items():
        base = arms["base"].tasks.get(task) if "base" in arms else None
        beside = f"base {percent(base['accuracy'])}, " if base else ""
        beside += f"n = {figures['n']:,}, {interval(figures['interval'])}"
        tiles.append(Tile(task, f"{100 * figures['accuracy']:.1f}", "%", beside))
    return tiles


def footnotes(run: Run) -> list[tuple[str, str]]:
    """Term and definition for each column, with its denominator, then what limits the comparison."""
    arms = model_results(run.evaluation, run.kind)
    if not arms:
        return []
    some = arms.get(MAIN) or next(iter(arms.values()))
    tokens, documents = some.value("n_tokens"), some.value("n_documents")
    over = f"{whole(tokens)} response tokens" if tokens is not None else "the response tokens"
    over += f" of {whole(documents)} held-out documents" if documents is not None else " of the held-out documents"
    notes = [
        ("KL", f"KL(base ‖ model) in nats, the mean over {over}. 0 is the base's own distribution."),
        ("Greedy agreement", "share of these tokens at which the model's most likely token is the base's."),
        (
            "Sampled acceptance",
            "how many of its tokens the base would accept if it drafted for it, both at temperature 1: the mean of "
            "Σ min(p, q) over these tokens. Drafting greedily for greedy decoding, it is the greedy agreement.",
        ),
        ("Perplexity", "exponential of the mean negative log-likelihood of these tokens."),
        ("Exact match", _exact_match_note(list(arms.values()))),
        (
            "KV cache",
            "bytes of keys and values that one token adds, over all attention layers, in bfloat16; at 32k that is one "
            f"sequence of {CONTEXT_TOKENS:,} tokens. {_state_note(some)}".strip(),
        ),
    ]
    return notes + [(other.name, _arm_note(run, other)) for other in run.arms if other.name in arms]


def _exact_match_note(arms: list[ModelResult]) -> str:
    text = "share of generated greedy answers that the task's own check accepts; an unfinished one counts as wrong"
    if all(arm.value("exact_match") is None for arm in arms):
        return f"{text}. Not measured in this run."
    return text + (". With n and the 95\N{NO-BREAK SPACE}% interval." if any(arm.interval for arm in arms) else ".")


def _state_note(hybrid: ModelResult) -> str:
    if not (state := hybrid.value("ssm_state_bytes")):
        return ""
    return f"The hybrid's SSM state, {bytes_(state)} a sequence in float32 whatever its length, is not in it."


def _remark(key: str, run: Run) -> str:
    if key == "draft":
        return f"{len(run.main.replaced)} {'' if run.plan.whole_layers else 'attention '}layers skipped"
    if key.endswith("_start"):
        return "before training"
    return next(("same tokens" for arm in run.arms if arm.name == key and _same_budget(run, arm)), "")


def _budget(run: Run, arm: HybridResults) -> tuple[float | None, float | None]:
    return number(run.main["distill"].get("tokens")), number(arm["distill"].get("tokens"))


def _same_budget(run: Run, arm: HybridResults) -> bool:
    ours, theirs = _budget(run, arm)
    return ours is not None and theirs is not None and abs(theirs - ours) <= 0.02 * ours


def _arm_note(run: Run, arm: HybridResults) -> str:
    """How an arm differs from the hybrid, and whether it had as much training."""
    text = ""
    if run.recipe is not None:
        given = run.recipe.differences(arm.name)
        text = f"as the {run.kind}, but {'; '.join(f'{field}: {_brief(value)}' for field, value in given.items())}. "
    ours, theirs = _budget(run, arm)
    if ours is None or theirs is None:
        return f"{text}How much it was trained is not known, so this page does not show that it had the same budget."
    text += f"It was trained end to end on {whole(theirs)} tokens, the {run.kind} on {whole(ours)}."
    if not _same_budget(run, arm):
        text += " The budgets differ, so the two rows are not a fair comparison."
    fitted, theirs_fitted = (number(one["align"].get("tokens")) for one in (run.main, arm))
    if fitted and not theirs_fitted:
        text += f" Only the {run.kind} had the layer-wise fit before that, on documents of {whole(fitted)} tokens."
    return text


def _brief(value: Any) -> str:
    """A choice by its kind, and what it sets besides."""
    if not isinstance(value, dict):
        return words(value)
    others = {key: item for key, item in value.items() if key != "kind" and item is not None}
    return " with ".join(filter(None, [str(value.get("kind", "")), words(others) if others else ""]))


def _bare_percent(arm: ModelResult, metric: str) -> str:
    share = arm.value(metric)
    return absent(arm.metrics.get(metric)) if share is None else f"{100 * share:.1f}"


def _beside(arms: dict[str, ModelResult], metric: str, key: str, name: str) -> str:
    reference = arms[key].value(metric) if key in arms else None
    if reference is None:
        return ""
    return f"{name} {significant(reference) if metric == 'kl' else percent(reference)}"
