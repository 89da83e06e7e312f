"""Diagnosis, measured: every selector at equal forward tokens, its set judged on held-out documents.

    python benchmarks/diagnosis.py [--parts selectors replaceability speedup] [--budget 10] [--passes 60]

Calibration and held-out documents are generated problems with the model's own greedy responses. What was judged is kept
in runs/benchmark-diagnosis, so a run that was stopped goes on. The result is written to
benchmarks/results/diagnosis.json, the figure to docs/figures/diagnosis.svg.

The part `replaceability` fits a block to every attention and searches over swaps: what a hybrid of these blocks, not
yet trained end to end, is worth with the layers that each way of choosing finds.

The part `speedup` times RAD's search as published twice, with as many trials: once each trial is a forward pass, once
it decodes. Run it on an idle machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.figure import drawing
from common.result import RESULTS, ROOT, parser_of, write_result
from radistill import load, load_data
from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.objectives import make_objective
from radistill.diagnosis.search import Found, print_ranking, rank_selectors, search
from radistill.diagnosis.selectors import EQUAL_PASSES, All, Bayes, Gates, Greedy, KLGuided, LeaveOneOut, Uniform
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.trials import Trials
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.files import read_json, write_text
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.provenance import seed_everything
from radistill.report.svg import Scale, line, tag, text
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask

FOLDER = ROOT / "runs" / "benchmark-diagnosis"


@dataclass(frozen=True)
class Case:
    """What all parts of the benchmark share: a model, its documents, and what the command line says."""

    model: Model
    calibration: list[Document]
    heldout: list[Document]
    fit: list[Document]
    given: argparse.Namespace

    def trials(self, documents: list[Document], objective: str | None = None, **settings: Any) -> Trials:
        """Judges sets by an objective, the command line's unless another is named."""
        judge = make_objective(objective or self.given.objective, self.model, 1024, FOLDER, draft_length=4)
        return Trials(self.model, documents, judge, **({"folder": FOLDER} | settings))

    def search(self, selector: Any, trials: Trials) -> Found:
        """A search with the passes that every selector has."""
        return search(selector, self.problem(trials), self.given.passes)

    def problem(self, trials: Trials, folder: Path | None = FOLDER) -> Problem:
        """What every selector is asked."""
        return Problem(trials, self.given.budget, self.given.seed, folder)


def selectors(case: Case) -> dict[str, Any]:
    """Every selector with the same forward tokens to spend; the best on held-out KL first.

    All maximise the same objective; Bayesian optimisation maximises RAD's own too, warm and as published. There are no
    seconds in it, because a set that one selector has judged is looked up by the next.
    """
    given = case.given
    trials, heldout = case.trials(case.calibration), case.trials(case.heldout)
    everyone = All().each(given.passes, "redundancy")
    found = rank_selectors(everyone, case.problem(trials), given.passes)
    print_ranking(found, trials)
    by_objective = [(given.objective, one) for one in found]
    published = case.trials(case.calibration, "accepted-length")
    for warm in (True, False):
        bayes = Bayes(trials=int(given.passes * 2), startup=10 if warm else 20, warm_start=warm)
        by_objective.append(("accepted-length", case.search(bayes, published)))
    rows = [
        {
            "selector": one.selector.kind + (", as published" if not getattr(one.selector, "warm_start", True) else ""),
            "objective": objective,
            "settings": one.selector.model_dump(mode="json", exclude={"kind", "storage"}),
            "replace": list(one.selection.layers),
            "heldout": _figures(heldout.judge(one.selection.layers)),
            "calibration": _figures(one.judgement),
            "passes": round(one.forward_tokens / trials.calibration_tokens, 2),
            "forward_tokens": round(one.forward_tokens),
        }
        for objective, one in by_objective
    ]
    return {"selectors": sorted(rows, key=lambda row: row["heldout"]["kl"])}


def replaceability(case: Case) -> dict[str, Any]:
    """Plans by redundancy and by replaceability, each judged with the attention of its layers skipped and swapped."""
    started = time.perf_counter()
    settings = AlignSettings(steps=60, tokens_per_batch=1024)
    blocks = fit_blocks(case.model, case.fit, settings, init="random", folder=FOLDER / "blocks")
    seconds = time.perf_counter() - started
    skips, swaps = case.trials(case.calibration), case.trials(case.calibration, substitutes=blocks)
    heldout = {"skipped": case.trials(case.heldout), "swapped": case.trials(case.heldout, substitutes=blocks)}
    ways: dict[str, tuple[Any, Trials]] = {
        "uniform": (Uniform(), skips),
        "greedy by redundancy": (Greedy(), skips),
        "greedy by replaceability": (Greedy(), swaps),
        "gates by replaceability": (Gates(steps=int(case.given.passes / 2.5)), swaps),
        "leave-one-out by replaceability": (LeaveOneOut(), swaps),
        "kl-guided": (KLGuided(), swaps),
    }
    rows = []
    for name, (selector, trials) in ways.items():
        found = case.search(selector, trials)
        layers = found.selection.layers
        judged = {how: _figures(on.judge(layers, limited=False)) for how, on in heldout.items()}
        passes = round(found.forward_tokens / trials.calibration_tokens, 2)
        rows.append({"way": name, "replace": list(layers), "heldout": judged, "passes": passes})
        print(f"{name}: KL {judged['skipped']['kl']:.3f} skipped, {judged['swapped']['kl']:.3f} swapped")
    fitted = {"documents": _size(case.fit), **settings.model_dump(mode="json"), "seconds": seconds}
    return {"replaceability": {"fit": fitted, "plans": rows}}


def _figures(draft: Judgement) -> dict[str, float]:
    return {
        "kl": draft.kl,
        "acceptance_rate": draft.acceptance_rate,
        "mean_accepted_length_4": draft.mean_accepted_length[4],
    }


def speedup(case: Case) -> dict[str, Any]:
    """The Bayesian search with trials that are forward passes, against the same search with trials that decode.

    Ours counts everything: the pass of the full model, the proposals, the trials. It is timed before and after the
    other, because a machine may slow down meanwhile, and the slower time counts. Of the other only the decoding itself
    counts, one prompt at a time, as in Draft & Verify; each trial counts with the tokens that it read, at the median
    seconds a token of all trials, so that a slow spell of the machine in the middle makes us no faster.
    """
    given, folder = case.given, FOLDER / "decoding"
    documents = _answered(case.model, given.decoded_documents, given.seed, given.decoded_tokens)
    selector = Bayes(trials=given.decoded_trials, startup=max(1, given.decoded_trials // 2), warm_start=False)

    def ours() -> tuple[Found, float]:
        started = time.perf_counter()
        trials = case.trials(documents, "accepted-length", folder=None)
        found = search(selector, case.problem(trials, None))
        return found, time.perf_counter() - started

    found, before = ours()
    theirs = case.trials(documents, "throughput-measured", folder=folder)
    decoded = search(selector, case.problem(theirs, folder))
    # A set that is proposed again is looked up, in both searches.
    runs = [theirs.judge(layers).decoded[4] for layers in dict.fromkeys(_sets(decoded))]
    seconds_a_token = statistics.median(run.seconds / run.tokens_read for run in runs)
    timings = [run.tokens_read * seconds_a_token for run in runs]
    again, after = ours()
    assert again.selection == found.selection
    seconds = max(before, after)
    prompts = [document.tokens[: document.response_start] for document in documents]
    longest = max(len(document.tokens) - document.response_start for document in documents)
    at_once = speculative_generate(
        case.model,
        prompts,
        ComponentMask.attention(decoded.selection.layers),
        draft_length=4,
        max_new_tokens=longest,
        batch_size=len(prompts),
    )
    both = {"ours": found.selection.layers, "decoding": decoded.selection.layers}
    heldout = case.trials(case.heldout, "throughput-measured")
    return {
        "speedup": sum(timings) / seconds,
        "search": {
            "trials": given.decoded_trials,
            "different_sets": {"ours": len(set(_sets(found))), "decoding": len(set(_sets(decoded)))},
            "documents": _size(documents),
            "draft_length": 4,
            "seconds": {
                "ours_before": before,
                "ours_after": after,
                "decoding": sum(timings),
                "decoding_as_timed": sum(run.seconds for run in runs),
            },
            "seconds_a_trial": {"ours": seconds / len(found.history), "decoding": statistics.mean(timings)},
            "decoding_trials": [{"tokens_read": run.tokens_read, "seconds": run.seconds} for run in runs],
            # The same set, decoded once more with all prompts in one batch, which Draft & Verify does not do.
            "seconds_of_last_set": {
                "decoding": theirs.judge(decoded.selection.layers).decoded[4].seconds,
                "decoding_in_one_batch": at_once.seconds,
            },
            "replace": {name: list(layers) for name, layers in both.items()},
            "heldout": {
                name: _figures(Judgement.of(ComponentMask.attention(layers), heldout.run(layers)))
                for name, layers in both.items()
            },
        },
    }


def _sets(found: Found) -> list[tuple[int, ...]]:
    return [trial.layers for trial in found.history]


# Each adds its keys to the result.
PARTS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "selectors": selectors,
    "replaceability": replaceability,
    "speedup": speedup,
}


def bars(rows: list[dict[str, Any]], title: str) -> Markup:
    """Held-out KL and accepted tokens a round of every selector, as an SVG file of its own."""
    top, step, names, width, gap = 74, 30, 250, 300, 60
    height = top + step * len(rows) + 16
    panels = (
        ("KL(model ‖ draft), nats a token: lower is better", "kl", names, min),
        ("accepted tokens a round, of 4: higher is better", "mean_accepted_length_4", names + width + gap, max),
    )
    elements = [tag("desc", "; ".join(_described(row) for row in rows))]
    for heading, key, left, best in panels:
        values = [row["heldout"][key] for row in rows]
        x = Scale(0, max(values) * 1.18, left, left + width)
        elements += [text(left, top - 18, heading, "label"), line(left, top - 6, left, height - 16, "axis")]
        for number, value in enumerate(values):
            y = top + step * number
            shape = "bar best" if value == best(values) else "bar"
            elements.append(tag("rect", x=left, y=y, width=max(1.0, x(value) - left), height=step - 12, class_=shape))
            elements.append(text(x(value) + 6, y + 13, f"{value:.3f}", "value"))
    for number, row in enumerate(rows):
        elements.append(text(names - 10, top + step * number + 13, _name(row), "label", "end"))
    return drawing(title, elements, names + 2 * width + gap + 10, height)


def _name(row: dict[str, Any]) -> str:
    return str(row["selector"]) if row["objective"] == "kl" else f"{row['selector']}, by acceptance"


def _described(row: dict[str, Any]) -> str:
    figures = row["heldout"]
    return f"{_name(row)}: KL {figures['kl']:.3f}, {figures['mean_accepted_length_4']:.3f} tokens a round"


def main() -> None:
    """Measure every part, and write the result."""
    parser = parser_of(__doc__, model="smollm2-135m", budget=10, passes=EQUAL_PASSES, objective="kl", threads=2, seed=0)
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="the others stay as they were written"
    )
    for name, default, explanation in (
        ("calibration", 8, "documents"),
        ("heldout", 24, "documents"),
        ("fit", 32, "documents that blocks are fitted on, for `replaceability`"),
        ("decoded-documents", 2, "for `speedup`"),
        ("decoded-trials", 10, "of each search, for `speedup`"),
        ("decoded-tokens", 512, "longest response, for `speedup`"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=explanation)
    given = parser.parse_args()
    seed_everything(given.seed, given.threads)
    model = load(given.model)
    documents = iter(_answered(model, given.calibration + given.heldout + given.fit, given.seed, 128))
    parts = [list(islice(documents, count)) for count in (given.calibration, given.heldout, given.fit)]
    case = Case(model, *parts, given)
    path = RESULTS / "diagnosis.json"
    result: dict[str, Any] = {name: getattr(given, name) for name in ("model", "budget", "passes", "objective", "seed")}
    result["model_fingerprint"] = model.fingerprint
    result |= {name: _size(getattr(case, name)) for name in ("calibration", "heldout")}
    # A part that was measured before, on the same documents, stays beside those that are measured now.
    before = read_json(path) if path.exists() else {}
    if any(before.get(name) != result[name] for name in ("heldout", "budget")):
        before = {}
    for name in given.parts:
        result |= PARTS[name](case)
    write_result("diagnosis", **(before | result))
    if "selectors" in given.parts:
        layers = model.anatomy.num_layers
        title = f"{given.budget} of {layers} attention layers skipped, chosen within {given.passes:g} passes"
        write_text(ROOT / "docs" / "figures" / "diagnosis.svg", f"{bars(result['selectors'], title)}\n")
        for row in result["selectors"]:
            print(_described(row))
    if "speedup" in given.parts:
        print(f"a search of {given.decoded_trials} trials: {result['speedup']:.0f} times as fast as one that decodes")


def _answered(model: Model, count: int, seed: int, max_new_tokens: int) -> list[Document]:
    return load_data("reasoning-gym:gsm_symbolic", model, count, seed=seed, max_new_tokens=max_new_tokens)


def _size(documents: list[Document]) -> dict[str, int]:
    return {
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
        "response_tokens": sum(len(document.tokens) - document.response_start for document in documents),
    }


if __name__ == "__main__":
    main()
