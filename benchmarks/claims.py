"""The hybrids of a recipe side by side: held-out KL with intervals, tokens to the baseline's quality, and tasks.

    python benchmarks/claims.py benchmarks/recipes/claims-cpu.yaml --data DATA --tasks recall --contexts 128 512
    python benchmarks/claims.py benchmarks/recipes/convergence.yaml
    python benchmarks/claims.py benchmarks/recipes/claims.yaml --data DATA --tasks gsm8k svamp recall --seeds 0 1 2

The recipe is run as `radistill run` runs it, once for each seed, in runs/NAME-SEED; what is finished there is kept.
Where the recipe's data file is not there, it is made: half of it GSM8K's training questions, if DATA is given, and the
rest generated code-tracing exercises. DATA is a folder with `gsm8k/train.jsonl` and, for the tasks, `gsm8k/dev.jsonl`,
`cruxeval/dev.jsonl` and `svamp/SVAMP.json`; nothing is fetched. With --minutes, a run ends by itself with exit code 75,
and the same command goes on.
The result is written to benchmarks/results/NAME.json, and a figure of the first seed's curves beside it.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from common.code_tracing import exercises
from common.figure import curves
from common.overlap import overlap
from common.result import RESULTS, ROOT, parser_of
from radistill.data.records import DataSplits
from radistill.data.settings import JsonlData
from radistill.distillation.heldout import distance
from radistill.evaluation.comparison import compare_results, read_results
from radistill.evaluation.places import subjects_of
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks.gsm8k import INSTRUCTION
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.files import read_json, write_json, write_text
from radistill.models.loading import load
from radistill.pipeline.run import run
from radistill.provenance import machine, versions
from radistill.runs.folder import RunFolder
from radistill.runs.recipe import Recipe, load_recipe
from radistill.statistics import paired_bootstrap

UNFINISHED = 75
"""Exit code of a slice that is over before the work is."""

TASK_FILES = {"gsm8k": "gsm8k/dev.jsonl", "cruxeval": "cruxeval/dev.jsonl", "svamp": "svamp/SVAMP.json"}


def write_prompts(path: Path, count: int, data: Path | None, seed: int) -> None:
    """Half word problems, as far as there are any, and the rest code tracing."""
    questions = [] if data is None else _rows(data / "gsm8k" / "train.jsonl")[: count // 2]
    asked = [f"{row['question']}\n\n{INSTRUCTION}" for row in questions]
    asked += [
        str(turn["content"]) for one in islice(exercises(seed), count - len(asked)) for turn in one.messages or ()
    ]
    write_text(path, "".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in asked))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def nats(folder: RunFolder, recipe: Recipe) -> dict[str, list[tuple[float, int]]]:
    """Of each hybrid and held-out document the sum of its KL to the base, over the whole vocabulary, and its tokens."""
    found = {}
    base, documents = load(recipe.model), DataSplits.load(folder.data()).documents("heldout")
    for arm in recipe.hybrids:
        student = load(folder.hybrid(arm.name).student)
        each = [distance(base.network, student.network, [document], base.pad_token_id) for document in documents]
        found[arm.name] = [(one.kl * one.tokens, one.tokens) for one in each]
    return found


def tokens_until(curve: dict[str, Any], kl: float) -> float | None:
    """Tokens at a training's first measure that is no higher than `kl`; None if it never gets there."""
    return next((point["tokens"] for point in curve["evaluations"] if point["kl"] <= kl), None)


def token_ratio(curve: dict[str, Any], baseline: dict[str, Any]) -> float | None:
    """Tokens until a training is no worse than the baseline at its end, over the baseline's; None if never."""
    reached = tokens_until(curve, baseline["evaluations"][-1]["kl"])
    return None if reached is None else reached / baseline["tokens"]


def less(one: list[tuple[float, int]], other: list[tuple[float, int]]) -> dict[str, Any]:
    """The KL of `one` less that of `other`, with its interval, bootstrapped over the same held-out documents."""
    values, tokens = zip(*one, strict=True)
    return asdict(paired_bootstrap([value for value, _ in other], values, tokens))


def measure(recipe: Recipe, folder: RunFolder, baseline: str) -> dict[str, Any]:
    """The figures of every hybrid of a finished run."""
    of_each, result = nats(folder, recipe), {}
    trainings = {arm.name: read_json(folder.hybrid(arm.name).distill) for arm in recipe.hybrids}
    for arm in recipe.hybrids:
        files = folder.hybrid(arm.name)
        kl = less(of_each[arm.name], [(0.0, 1)] * len(of_each[arm.name]))
        found = {"kl": kl["difference"], "interval": kl["interval"], "evaluations": trainings[arm.name]["evaluations"]}
        found |= {name: trainings[arm.name][name] for name in ("tokens", "seconds")}
        found["replace"] = read_json(files.plan)["replace"]
        rates = files.rates / "rates.json"
        found["rates"] = read_json(rates) if rates.exists() else None
        fit = read_json(files.align) if arm.align else None
        found["unexplained"] = {str(one["layer"]): one["unexplained_after"] for one in fit["layers"]} if fit else None
        if baseline in trainings:
            found["token_ratio"] = token_ratio(trainings[arm.name], trainings[baseline])
        found["less"] = {name: less(of_each[arm.name], of_each[name]) for name in of_each if name != arm.name}
        result[arm.name] = found
    return result


def ask(folder: RunFolder, names: list[str], settings: TaskSettings) -> dict[str, Any]:
    """What base and hybrids know of tasks, and which differences to the base are real."""
    subjects = subjects_of(str(folder.path), arms=True)
    tasks = tasks_of(names, settings)
    figures = {one.name: run_tasks(load(one.model), tasks, settings, one.folder) for one in subjects}
    return {
        "figures": figures,
        "lines": [asdict(line) for line in compare_results([read_results(one.name, one.folder) for one in subjects])],
    }


def shared_text(prompts: Path, data: Path) -> dict[str, Any]:
    """N-grams that the training text shares with what is asked."""
    training = [row["prompt"] for row in _rows(prompts)]
    asked = {name: _rows(data / TASK_FILES[name]) for name in ("gsm8k", "cruxeval")}
    return {
        "gsm8k": overlap(training, [row["question"] for row in asked["gsm8k"]], 13),
        "cruxeval": overlap(training, [row["code"] for row in asked["cruxeval"]], 10),
    }


def study(given: argparse.Namespace) -> dict[str, Any]:
    """Every seed's run, measured."""
    seeds: dict[str, Any] = {}
    for seed in given.seeds:
        folder = RunFolder(given.folder / f"{given.recipe.stem}-{seed}")
        recipe = load_recipe(given.recipe, [f"seed={seed}", *given.set])
        prompts = folder.path / "prompts.jsonl"
        if isinstance(recipe.data, JsonlData) and not recipe.data.path.exists():
            if not prompts.exists():
                write_prompts(prompts, recipe.data.train + recipe.data.heldout, given.data, seed)
            recipe = load_recipe(given.recipe, [f"seed={seed}", *given.set, f"data.path={prompts}"])
        run(recipe, folder.path)
        seeds[str(seed)] = {"arms": measure(recipe, folder, given.baseline)}
        if given.tasks:
            files = {name: given.data / file for name, file in TASK_FILES.items() if given.data is not None}
            files = {name: file for name, file in files.items() if any(task.startswith(name) for task in given.tasks)}
            settings = TaskSettings(
                data=files,
                limit=given.limit,
                max_new_tokens=given.max_new_tokens,
                batch_size=given.batch_size,
                contexts=tuple(given.contexts or ()) or None,
            )
            seeds[str(seed)]["tasks"] = ask(folder, given.tasks, settings)
        if given.data is not None and prompts.exists():
            seeds[str(seed)]["overlap"] = shared_text(prompts, given.data)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seeds": seeds,
        "over_seeds": over_seeds(seeds.values()),
        "versions": versions(),
        "machine": machine(),
    }


def over_seeds(seeds: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The lowest, mean and highest of each arm's KL over the seeds."""
    every = [seed["arms"] for seed in seeds]
    kls = {name: [arms[name]["kl"] for arms in every] for name in every[0]}
    return {name: [min(values), sum(values) / len(values), max(values)] for name, values in kls.items()}


def main() -> None:
    """Run a slice, and write the result when all is done."""
    parser = parser_of(__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="folder with gsm8k, cruxeval and svamp")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as in `radistill run`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--baseline", default="uniform-transfer", help="the arm whose final KL the others are to reach")
    parser.add_argument("--tasks", nargs="+", default=[], help="ask base and hybrids, as `radistill evaluate --tasks`")
    parser.add_argument("--limit", type=int, help="examples of each task")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer")
    parser.add_argument("--contexts", type=int, nargs="+", help="of recall, in tokens")
    parser.add_argument("--batch-size", type=int, default=32, help="answers generated at once")
    parser.add_argument("--minutes", type=float, help="end after so long, with exit code 75 if something is left")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs", help="where the work is kept")
    parser.add_argument("--out", type=Path, help="the result; default benchmarks/results/NAME.json")
    given = parser.parse_args()
    if given.minutes:
        clock = threading.Timer(60 * given.minutes, os.kill, (os.getpid(), signal.SIGINT))
        clock.daemon = True
        clock.start()
    try:
        result = study(given)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(UNFINISHED)
    out = given.out or RESULTS / f"{given.recipe.stem}.json"
    write_json(out, result)
    first = result["seeds"][str(given.seeds[0])]["arms"]
    title = f"{len(first['hybrid']['replace'])} attention layers replaced, then distilled"
    write_text(out.with_suffix(".svg"), f"{curves(first, title)}\n")
    for seed, found in result["seeds"].items():
        for name, arm in found["arms"].items():
            low, high = arm["interval"]
            before = arm["evaluations"][0]["kl"]
            print(f"seed {seed}, {name}: KL {before:.3f} before, {arm['kl']:.3f} ({low:.3f} to {high:.3f}) after")


if __name__ == "__main__":
    main()
