"""The answer in a few sentences, computed from the figures: never kinder than they are."""

from radistill.report.model_results import START, ModelResult, model_results
from radistill.report.numbers import absent, percent, significant, whole
from radistill.runs.folder import MAIN
from radistill.runs.read import Run

# A ratio this close to one is called neither better nor worse.
_TOLERANCE = 0.05
_FRACTIONS = {
    1 / 4: "a quarter less KV cache",
    1 / 3: "a third less KV cache",
    1 / 2: "half the KV cache",
    2 / 3: "two thirds less KV cache",
    3 / 4: "three quarters less KV cache",
}


def verdict(run: Run) -> list[str]:
    """What the run achieved, with the figures that say so, and what they leave open: one or two paragraphs."""
    arms = model_results(run.evaluation, run.kind)
    if MAIN not in arms:
        return [_layers(run, arms), f"The {run.kind} has not been evaluated yet, so how good it is cannot be said."]
    return [f"{_layers(run, arms)} {_distance(run, arms)}", _tasks(arms)]


def cache_saving(arms: dict[str, ModelResult]) -> float | None:
    """Share of the base's KV cache that the hybrid does without."""
    base, hybrid = (arms[key].value("kv_bytes_per_token") if key in arms else None for key in ("base", MAIN))
    return None if not base or hybrid is None else 1 - hybrid / base


def acceptance_sentence(arms: dict[str, ModelResult]) -> str:
    """How many of a drafter's tokens its target accepts, before and after training; empty where that is not known."""

    def shares(key: str) -> list[str]:
        found = [arms[key].value(metric) if key in arms else None for metric in ("agreement", "sampled_acceptance")]
        return [] if None in found else [percent(share) for share in found]

    now, before = shares(MAIN), shares("draft")
    if not now:
        return ""
    text = f"Its target accepts {now[0]} of its greedy tokens and {now[1]} of its sampled ones at temperature 1"
    return f"{text}; before training {before[0]} and {before[1]}." if before else f"{text}."


def _layers(run: Run, arms: dict[str, ModelResult]) -> str:
    total = run.num_attention_layers
    kept = total - len(run.main.replaced)
    if run.plan.whole_layers:
        keeps = f"all {total} layers of its model" if kept == total else f"{kept} of the {total} layers of its model"
        return f"The drafter keeps {keeps}. {acceptance_sentence(arms)}".rstrip()
    if kept == total:
        return "The plan replaces no layer, so the hybrid keeps all attention."
    text = f"The hybrid keeps {kept} of {total} attention layers"
    saving = cache_saving(arms)
    if saving is None:
        return f"{text}."
    for fraction, phrase in _FRACTIONS.items():
        if abs(saving - fraction) < 0.005:
            return f"{text} and needs {phrase}."
    return f"{text} and needs {percent(abs(saving), 0)} {'less' if saving >= 0 else 'more'} KV cache."


def _distance(run: Run, arms: dict[str, ModelResult]) -> str:
    hybrid = arms[MAIN].value("kl")
    if hybrid is None:
        return (
            f"Its KL to the base is {absent(arms[MAIN].metrics.get('kl'))}, so nothing can be said about its quality."
        )
    documents = arms[MAIN].value("n_documents")
    where = f"On {whole(documents)} held-out documents" if documents is not None else "On the held-out documents"
    text = f"{where} its KL to the base is {significant(hybrid)} nats per response token"
    comparisons, warnings = [], []
    others = [(arm.name, f"the arm {arm.name}", f"The arm {arm.name} is the better model here.") for arm in run.arms]
    for key, name, warning in ((run.judged, _start(run), f"Training has made the {run.kind} worse."), *others):
        reference = arms[key].value("kl") if key in arms else None
        if reference is None or reference <= 0:
            continue
        ratio = hybrid / reference
        comparisons.append(f"{_ratio(ratio)} {name} ({significant(reference)})")
        if ratio > 1 + _TOLERANCE:
            warnings.append(warning)
    return " ".join([", ".join([text, " and ".join(comparisons)] if comparisons else [text]) + ".", *warnings])


def _start(run: Run) -> str:
    """What the draft that the search judged is to the hybrid: its start, if the new blocks put out zero at first.

    Another start is evaluated by itself.
    """
    if run.judged == START:
        return "where its fitted blocks started"
    arm = run.main.arm
    started = arm is not None and "align" not in arm.trainings and START not in run.evaluation
    return "where it started" if started else "the draft that only skips these layers"


def _ratio(ratio: float) -> str:
    if ratio > 1 + _TOLERANCE:
        return f"{significant(ratio, 2)} times"
    return "no better than" if ratio >= 1 - _TOLERANCE else f"{significant(ratio, 2)} of"


def _tasks(arms: dict[str, ModelResult]) -> str:
    hybrid, base = arms[MAIN], arms.get("base")
    solved = hybrid.value("exact_match")
    reference = base.value("exact_match") if base is not None else None
    if base is None or solved is None or reference is None:
        if hybrid.tasks:
            return ""
        return "Exact match on tasks was not measured, and KL alone does not show what a model can still do."
    n = f" of {whole(hybrid.exact_match_n)} problems" if hybrid.exact_match_n is not None else " of the problems"
    text = f"It solves {percent(solved, 0)}{n}, the base {percent(reference, 0)}"
    if hybrid.interval is None or base.interval is None:
        return f"{text}."
    if hybrid.interval[1] < base.interval[0]:
        return f"{text}: a loss beyond the 95\N{NO-BREAK SPACE}% intervals."
    if hybrid.interval[0] > base.interval[1]:
        return f"{text}: a gain beyond the 95\N{NO-BREAK SPACE}% intervals."
    return f"{text}; the 95\N{NO-BREAK SPACE}% intervals overlap, so these problems are too few to tell the two apart."
