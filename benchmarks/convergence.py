"""How fast a hybrid comes back: plans and initialisations of one student, trained on the same tokens in the same order.

    python benchmarks/convergence.py [--tokens 60000] [--budget 10]

Plans: `rad` (the default search, over skips), `uniform`, and `replaceable` (the same search, over swaps with fitted
blocks). Initialisations: `zero` (RAD), `transfer` (Mamba-in-the-Llama) and `fitted`. All blocks have the same geometry,
with a B/C group for each head, which a transfer needs. Every arm is trained on the teacher's logits, the new blocks
alone, with a rate of its own, the one of three that is best after a tenth of the tokens. Held-out KL and agreement are
measured at every eighth. Activations are bfloat16, as a GPU would have them, and weights float32.

`rad_token_ratio`: tokens after which `rad + zero` is no worse than `uniform + transfer` at its end, over those of the
latter. `fitted_token_ratio`: tokens after which `rad + fitted` is below every arm of the other initialisations at all
of their tokens, over theirs. Both count end-to-end tokens; what a fit costs besides is in the result, and a second
figure, `fitted_seconds_ratio`, counts its seconds too. Everything that is finished is kept in
runs/benchmark-convergence, so a run that was stopped goes on. The result is written to
benchmarks/results/convergence.json, the figure to docs/figures/convergence.svg.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.curves import drawing
from common.students import GEOMETRY, RATES, best_rate, first_tokens, token_ratio, tokens_until, train_blocks
from radistill import align, convert, diagnose, load
from radistill.data.prepare import prepare
from radistill.data.settings import ReasoningGymData, ResponseSettings
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.files import hash_json, read_json, write_json, write_text
from radistill.models.loading import Model
from radistill.models.sequences import Document, batches, hash_documents
from radistill.provenance import machine, seed_everything, versions

ROOT = Path(__file__).parent.parent
COMPARED = ("rad+zero", "uniform+transfer", "rad+fitted")
"""The arms that the ratios are of; the others may be left out."""

ARMS = [*COMPARED, "rad+transfer", "replaceable+fitted", "uniform+zero", "uniform+fitted"]
MEASURES = 8
PROBES = 10
"""A rate is chosen after this part of the steps."""


@dataclass(frozen=True)
class Case:
    """What all arms share."""

    model: Model
    train: list[Document]
    heldout: list[Document]
    fit: AlignSettings
    tokens_per_batch: int
    seed: int
    folder: Path


def find_plan(
    name: str, case: Case, calibration: list[Document], budget: int, search_fit: AlignSettings
) -> dict[str, Any]:
    """The layers of a plan, and what finding them took."""
    path = (
        case.folder / f"plan-{name}-{hash_json([budget, search_fit.model_dump(mode='json'), shared(case)])[:16]}.json"
    )
    if path.exists():
        return read_json(path)
    started, substitutes = time.perf_counter(), None
    if name == "replaceable":
        blocks = case.folder / "blocks"
        substitutes = fit_blocks(
            case.model, case.train, search_fit, target=GEOMETRY, init="fitted", seed=case.seed, folder=blocks
        )
    selector = "uniform" if name == "uniform" else "greedy"
    plan = diagnose(case.model, calibration, budget, selector=selector, substitutes=substitutes, seed=case.seed)
    seconds = round(time.perf_counter() - started, 1)
    found = {"replace": plan.replace, "kl": plan.kl, "by": plan.by, "seconds": seconds}
    write_json(path, found)
    return found


def measure(case: Case, replace: list[int], init: str) -> dict[str, Any]:
    """Choose a rate for an arm, and train it."""
    of_fit = case.fit.model_dump(mode="json") if init == "fitted" else None
    path = case.folder / f"{hash_json([replace, init, RATES[init], of_fit, shared(case)])[:16]}.json"
    if path.exists():
        return read_json(path)
    student, fit = start(case, replace, init)
    steps = len(batches(case.train, case.tokens_per_batch))

    def probe(rate: float) -> float:
        tried, _ = start(case, replace, init)
        curve = train(case, tried, replace, max(1, steps // PROBES), rate, measures=1)
        kl: float = curve["evaluations"][-1]["kl"]
        return kl

    best, rates = best_rate(init, probe)
    result = {
        "replace": replace,
        "init": init,
        "fit": fit,
        "rates": rates,
        "rate": best,
        **train(case, student, replace, steps, best, measures=MEASURES),
    }
    write_json(path, result)
    return result


def start(case: Case, replace: list[int], init: str) -> tuple[Model, dict[str, Any] | None]:
    """The student before end-to-end training, and what its fit took."""
    student = convert(case.model, replace, target=GEOMETRY, init=init, seed=case.seed)
    if init != "fitted":
        return student, None
    folder = case.folder / "fitted"
    fit = align(student, case.model, case.train, case.fit, replace=replace, seed=case.seed, folder=folder)
    explained = {str(layer.layer): 1 - layer.unexplained_after for layer in fit.layers}
    seconds = round(sum(layer.seconds for layer in fit.layers), 1)  # of every layer, also where a fit went on
    return student, {"tokens": fit.tokens, "seconds": seconds, "explained": explained}


def train(case: Case, student: Model, replace: list[int], steps: int, rate: float, *, measures: int) -> dict[str, Any]:
    """Train the new blocks alone, with the activations that a GPU would have."""
    return train_blocks(
        student, case.model, case.train, case.heldout,
        replace=replace, steps=steps, tokens_per_batch=case.tokens_per_batch, rate=rate,
        precision="bfloat16", measures=measures, folder=case.folder / "training", seed=case.seed,
    )  # fmt: skip


def ratios(arms: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """The figures that the arms are trained for; None where an arm never gets there."""
    baseline = arms["uniform+transfer"]
    others = [arm for arm in arms.values() if arm["init"] != "fitted"]
    lowest = min(point["kl"] for arm in others for point in arm["evaluations"])
    fitted = arms["rad+fitted"]
    reached = tokens_until(fitted, lowest)
    share = seconds = None
    if reached is not None:
        share = reached / fitted["tokens"]
        seconds = (fitted["fit"]["seconds"] + share * fitted["seconds"]) / min(arm["seconds"] for arm in others)
    return {
        "rad_token_ratio": token_ratio(arms["rad+zero"], baseline),
        "fitted_token_ratio": share,
        "fitted_seconds_ratio": seconds,
        "fitted_kl_ratio_to_zero": fitted["evaluations"][0]["kl"] / arms["rad+zero"]["evaluations"][0]["kl"],
    }


def main() -> None:
    """Find the plans, train every arm, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=60_000, help="of every arm, in end-to-end training")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=8, help="documents")
    parser.add_argument("--heldout", type=int, default=24, help="documents")
    parser.add_argument("--fit-steps", type=int, default=560, help="of each block's fit")
    parser.add_argument("--search-fit-steps", type=int, default=80, help="of each block's fit in the search over swaps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="only these, in this order")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if missing := set(COMPARED) - set(given.arms):
        parser.error(f"--arms: the ratios need {', '.join(sorted(missing))} too")
    seed_everything(given.seed, given.threads)
    model = load(given.model)
    folder = ROOT / "runs" / "benchmark-convergence"
    data = ReasoningGymData(
        train=math.ceil(given.tokens / TOKENS_PER_DOCUMENT),
        calibration=given.calibration,
        heldout=given.heldout,
        responses=ResponseSettings(source="teacher", max_new_tokens=128, batch_size=32),
    )
    splits = prepare(model, data, seed=given.seed, folder=folder / "data")
    calibration, heldout = splits.documents("calibration"), splits.documents("heldout")
    train = first_tokens(splits.documents("train"), given.tokens)
    if (short := given.tokens - _size(train)["tokens"]) > 0:
        raise SystemExit(f"the documents have {short} tokens too few; ask for fewer with --tokens")
    fit = AlignSettings(steps=given.fit_steps, tokens_per_batch=512)
    case = Case(model, train, heldout, fit, given.tokens_per_batch, given.seed, folder)
    search_fit = fit.model_copy(update={"steps": given.search_fit_steps})
    plans, arms = {}, {}
    for arm in given.arms:
        plan, init = arm.split("+")
        plans[plan] = find_plan(plan, case, calibration, given.budget, search_fit)
        arms[arm] = measure(case, plans[plan]["replace"], init)
    result = {
        **ratios(arms),
        "model": given.model,
        "model_fingerprint": model.fingerprint,
        "data": {"settings": data.model_dump(mode="json"), "train": _size(train), "heldout": _size(heldout)},
        "geometry": GEOMETRY.model_dump(mode="json"),
        "left_out": [arm for arm in ARMS if arm not in arms],
        "plans": plans,
        "arms": arms,
        "fit": case.fit.model_dump(mode="json"),
        "search_fit": search_fit.model_dump(mode="json"),
        "tokens_per_batch": given.tokens_per_batch,
        "seed": given.seed,
        "versions": versions(),
        "machine": machine(),
    }
    write_json(ROOT / "benchmarks" / "results" / "convergence.json", result)
    title = f"{given.budget} of {model.anatomy.num_layers} attention layers replaced, then distilled"
    write_text(ROOT / "docs" / "figures" / "convergence.svg", str(drawing(arms, title)) + "\n")
    for name, arm in arms.items():
        before, after = arm["evaluations"][0]["kl"], arm["evaluations"][-1]["kl"]
        print(f"{name}: KL {before:.3f} before, {after:.3f} after, rate {arm['rate']:g}")
    for name, value in ratios(arms).items():
        print(f"{name}: {'never' if value is None else f'{value:.3f}'}")


TOKENS_PER_DOCUMENT = 158
"""Less than the documents have on average, prompt and response."""


def _size(documents: list[Document]) -> dict[str, int]:
    return {
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
        "response_tokens": sum(len(document.tokens) - document.response_start for document in documents),
    }


def shared(case: Case) -> Any:
    return [
        hash_documents([*case.train, *case.heldout]),
        GEOMETRY.model_dump(mode="json"),
        case.tokens_per_batch,
        case.seed,
        case.model.fingerprint,
    ]


if __name__ == "__main__":
    main()
