"""The trade-off of SmolLM2-135M: with and without recall in the choice of layers, and whether a promise is kept.

    python benchmarks/tradeoff.py [--parts curves promises] [--seeds 1 2 3] [--weight 0.1] [--contexts 256 512]

The blocks are those of the quick start (`make demo` leaves them in runs/quickstart/aligned; they are fitted otherwise).

1. `curves`: two by the same blocks and texts. One search maximises minus the KL, the other weighs in the KL on the
   answers of retrieval texts. Every size of both is measured on held-out text, and some on fresh text: problems of
   another seed, and the texts of the task `recall`, whose templates are others, of up to 1,024 tokens.
2. `promises`: for each seed calibration and held-out sets of its own, of other problems and other texts. The most
   layers that keep `{kl: 0.05, recall: 0.9}` by the worse ends of the held-out intervals, and whether they do so on
   fresh text. There are forty texts of 128 and of 256 tokens each, because an interval that begins above 0.9 needs
   more than forty numbers that the model itself finds. The search ends after `--passes` over the calibration texts,
   with the sizes that matter; sets of more than eight layers are not measured, because none keeps this KL.

What is finished, in runs/tradeoff, is used again, so that several processes can share the seeds and one more call
collects them. The results are written to benchmarks/results/tradeoff.json and promises.json, and both curves are drawn
in docs/figures/tradeoff.svg.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.figure import drawing, entry, series
from common.result import ROOT, options, write_result
from radistill.conversion.targets import TARGETS
from radistill.data.prepare import prepare
from radistill.data.records import DataSplits
from radistill.data.settings import ReasoningGymData, ResponseSettings, RetrievalSettings
from radistill.diagnosis.objectives import ObjectiveChoice, make_objective
from radistill.diagnosis.selectors import Curve
from radistill.diagnosis.trials import Trials
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.evaluation.run_tasks import tasks_of
from radistill.evaluation.tasks.interface import Generated, TaskSettings
from radistill.evaluation.tradeoff import best_sets, kept, measured, trade_off
from radistill.files import hash_json, read_kept, write_kept
from radistill.models.loading import Model, load
from radistill.models.sequences import Document
from radistill.pipeline.run import run
from radistill.provenance import seed_everything
from radistill.recipes import shipped_recipes
from radistill.report.svg import Axes, Scale, value_scale
from radistill.runs.folder import RunFolder
from radistill.runs.recipe import load_recipe

FOLDER = ROOT / "runs" / "tradeoff"
KEEP = {"kl": 0.05, "recall": 0.9}
FRESH = 1000
"""The seed of the fresh text."""
LENGTHS = (512, 1024)
"""Tokens of the task's texts."""
TEXTS, PROMISE_TEXTS = 20, 40
"""Held-out retrieval texts of each length, of the curves (fewer can be used) and of the promises."""
MOST = 8
"""Layers of the largest set that a promise measures."""
SIZES = (5, 10, 15, 20, 25)
"""Those that are measured on fresh text."""


def main() -> None:
    """Draw both curves, then test the promise seed by seed."""
    given = options(
        __doc__,
        parts=["curves", "promises"],
        seeds=list(range(1, 11)),
        weight=0.1,
        contexts=[256, 512],
        promised=[128, 256],
        passes=34.0,
        width=3,
        swap_width=1,
        texts=20,
        seed=0,
        threads=2,
    )
    recipe = load_recipe(shipped_recipes()["quickstart"])
    out = run(recipe, ROOT / "runs" / "quickstart", ["data"])
    seed_everything(given.seed, given.threads)  # the run has set its recipe's
    model = load(recipe.model)
    align = AlignSettings.model_validate(recipe.align.model_dump(exclude={"data"})) if recipe.align else None
    documents = DataSplits.load(RunFolder(out).data()).documents("train")
    blocks = fit_blocks(model, documents, align, target=recipe.target, folder=RunFolder(out).aligned)
    numbers = TARGETS[recipe.target.kind].geometry(model.network.config, recipe.target).state_numbers
    selector = Curve(width=given.width, swap_width=given.swap_width)
    fresh = texts_of(model, given.contexts, FRESH).documents("heldout")

    def judged(
        documents: Sequence[Document],
        retrieval: Sequence[Document],
        objective: ObjectiveChoice = "kl",
        folder: Path | None = None,
    ) -> Trials:
        how = make_objective(objective, model, 1024, None)
        return Trials(model, documents, how, retrieval=retrieval, substitutes=blocks, folder=folder)

    def on_fresh(points: Sequence[Mapping[str, Any]], asked: Sequence[Document]) -> dict[int, dict[str, Any]]:
        sets = {point["budget"]: tuple(point["layers"]) for point in points}
        return measured(judged(fresh, asked), sets, FOLDER / "fresh")

    def curve(objective: ObjectiveChoice, name: str) -> dict[str, Any]:
        splits, folder = texts_of(model, given.contexts, 0), FOLDER / "seed-0"
        trials = judged(splits.documents("calibration"), splits.documents("calibration_retrieval"), objective, folder)
        texts_asked = [
            one for number, one in enumerate(splits.documents("heldout_retrieval")) if number % TEXTS < given.texts
        ]
        heldout = (splits.documents("heldout"), texts_asked)
        print(f"curve by {name}")
        return trade_off(trials, heldout, selector, state_numbers=numbers, seed=0, folder=folder)

    def points_of(trials: Trials, sets: Mapping[int, tuple[int, ...]], folder: Path) -> list[dict[str, Any]]:
        figures = measured(trials, sets, folder)
        return [{"budget": size, "layers": list(sets[size])} | figures[size] for size in sets]

    def promise(seed: int) -> dict[str, Any]:
        folder = FOLDER / f"promise-{seed}"
        of = {name: value for name, value in vars(given).items() if name not in ("parts", "seeds", "threads")}
        key = hash_json([of, KEEP, MOST])
        if known := read_kept(folder / "promise.json", key):
            return dict(known)
        print(f"promise, seed {seed}")
        splits = texts_of(model, given.promised, seed, PROMISE_TEXTS)
        trials = judged(splits.documents("calibration"), splits.documents("calibration_retrieval"), mix, folder)
        best = best_sets(trials, selector, seed=seed, passes=given.passes, folder=folder)
        sets = {size: layers for size, layers in best.sets.items() if size <= MOST}
        points = points_of(judged(splits.documents("heldout"), []), sets, folder)
        near = {point["budget"] for point in points if kept([point], {"kl": KEEP["kl"]})}
        assert MOST not in near
        # Recall takes five times as long as the KL, so only sizes that keep the KL are asked, from the largest down.
        asked = judged(splits.documents("heldout"), splits.documents("heldout_retrieval"))
        tried: list[dict[str, Any]] = []
        for size in sorted(near, reverse=True):
            tried += points_of(asked, {size: sets[size]}, folder)
            if kept(tried, KEEP):
                break
        point = kept(tried, KEEP)
        found = {"seed": seed, "held_out": points, "tried": tried, "budget": point and point["budget"]}
        if point is not None:
            on = on_fresh([point], of_the_task(model, given.promised, 40))[point["budget"]]
            found |= {"fresh": on, "is_kept": on["kl"] <= KEEP["kl"] and on["recall"] >= KEEP["recall"]}
        write_kept(folder / "promise.json", key, found)
        return found

    mix: ObjectiveChoice = {"kl": 1.0, "retrieval": given.weight}
    if "curves" in given.parts:
        curves: dict[str, Any] = {}
        for name, objective in (("kl", "kl"), ("mix", mix)):
            found = curve(objective, name)
            some = [point for point in found["points"] if point["budget"] in SIZES]
            curves[name] = found | {"fresh": on_fresh(some, of_the_task(model, LENGTHS, 5))}
            write_result("tradeoff", settings=vars(given), curves=curves)
        (ROOT / "docs" / "figures" / "tradeoff.svg").write_text(figure(curves) + "\n", encoding="utf-8")
    if "promises" in given.parts:
        promises = []
        for seed in given.seeds:
            promises.append(promise(seed))
            print(promises[-1])
        write_result("promises", settings=vars(given), keep=KEEP, promises=promises)


def texts_of(model: Model, contexts: list[int], seed: int, heldout: int = TEXTS) -> DataSplits:
    """Problems with the model's own responses, and retrieval texts."""
    data = ReasoningGymData(
        tasks={"gsm_symbolic": {}},
        train=8,
        calibration=8,
        heldout=16,
        responses=ResponseSettings(max_new_tokens=96, batch_size=32),
        retrieval=RetrievalSettings(contexts=contexts, calibration=2, heldout=heldout),
    )
    folder = FOLDER / f"data-{seed}" if heldout == TEXTS else FOLDER / f"promise-{seed}" / "data"
    if not (folder / "heldout_retrieval.jsonl").exists():
        prepare(model, data, seed=seed, folder=folder)
    return DataSplits.load(folder)


def of_the_task(model: Model, lengths: Sequence[int], limit: int) -> list[Document]:
    """The texts of the task `recall`, of both kinds, with their answers."""
    settings = TaskSettings(contexts=tuple(lengths), limit=limit, seed=FRESH)
    (task,) = tasks_of(["recall"], settings)
    assert isinstance(task, Generated)
    found = []
    for example in task.read(model, settings):
        assert example.verifier is not None
        prompt = model.tokenizer(example.text)["input_ids"]
        answer = model.tokenizer(f" {example.verifier['answer']}")["input_ids"]
        found.append(Document(example.id, (*prompt, *answer), len(prompt)))
    return found


def figure(curves: dict[str, dict[str, Any]]) -> Markup:
    """KL on the left and recall on the right, over what the cache needs at 32k tokens; both by either choice."""
    width, height = 960, 420
    elements: list[Markup] = []
    for place, (what, title) in enumerate((("kl", "held-out KL, nats a token"), ("recall", "recall kept, %"))):
        left = 70 + place * 480
        x = Scale(0, 100, left, left + 370)
        ends = [point[f"{what}_interval"][1] for one in curves.values() for point in one["points"]]
        highest = 105 * max(1, *ends)
        y = Scale(0, highest, height - 50, 80) if what == "recall" else value_scale(ends, height - 50, 80)
        elements += Axes(x, y, "KV cache at 32k tokens, % of the model's", title, x.ticks(5), y.ticks(5)).draw()
        for number, (name, one) in enumerate(curves.items()):
            whole = one["points"][0]["cache_bytes"]["32768"]
            marks = []
            for point in one["points"]:
                scale = 1 if what == "kl" else 100
                values = [scale * value for value in (point[what], *point[f"{what}_interval"])]
                marks.append((x(100 * point["cache_bytes"]["32768"] / whole), *map(y, values)))
            style = f"arm-{number}"
            elements += series(marks, style, 3)
            if not place:
                label = {"kl": "chosen by KL", "mix": "chosen by KL and retrieval"}[name]
                elements += entry(left + 150, 100 + 18 * number, label, style)
    title = "SmolLM2-135M: what is kept as attention gives way to fitted Mamba-2 blocks, before distillation"
    return drawing(title, elements, width, height)


if __name__ == "__main__":
    main()
