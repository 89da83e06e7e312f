"""Recall over context length: SmolLM2-135M, and hybrids of it that kept twenty and five of its thirty attentions.

    python benchmarks/recall.py [--also MODEL …]

The hybrids come from the recipe of the quick start, the second with a budget of 25 and the layers that are best one by
one. What is finished, in runs/quickstart, runs/quickstart-25 and runs/recall, is used; --also asks further models, each
for itself. Result: benchmarks/results/recall.json.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.result import ROOT, parser_of, write_result
from radistill import load
from radistill.evaluation.comparison import compare_results, read_results
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.files import read_json
from radistill.pipeline.run import run
from radistill.provenance import seed_everything
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import load_recipe

SETTINGS = TaskSettings(contexts=(64, 128, 256, 512, 1024), limit=20, batch_size=20)
RUNS: dict[str, list[str]] = {
    "quickstart": [],
    "quickstart-25": ["diagnose.budget=25", "diagnose.selector=leave-one-out", "arms={}"],
}


def recall_of(source: str | Path, name: str) -> dict[str, Any]:
    """The figures of a model, over all and for each kind and context."""
    print(name)
    return dict(run_tasks(load(source), tasks_of(["recall"], SETTINGS), SETTINGS, ROOT / "runs" / "recall" / name))


def hybrid(name: str, overrides: list[str]) -> dict[str, Any]:
    """Run the recipe, and ask the student."""
    folder = run(load_recipe(shipped_recipes()["quickstart"], overrides), ROOT / "runs" / name)
    evaluation, plan = read_json(folder / "evaluation.json"), read_json(folder / "plan.json")
    kept = {key: evaluation["hybrid"][key] for key in ("kl", "agreement", "kv_bytes_per_token")}
    return {"replace": plan["replace"], "overrides": overrides, **kept, **recall_of(folder / "student", name)}


def main() -> None:
    """Ask base and hybrids, and compare them."""
    parser = parser_of(__doc__)
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="MODEL", help="a further model")
    further: list[Path] = parser.parse_args().also
    seed_everything(0, 2)
    models = {"base": recall_of("smollm2-135m", "base")}
    models |= {name: hybrid(name, overrides) for name, overrides in RUNS.items()}
    models |= {path.stem: recall_of(path, path.stem) for path in further}
    results = [read_results(name, ROOT / "runs" / "recall" / name) for name in ("base", *RUNS)]
    settings = {name: getattr(SETTINGS, name) for name in ("contexts", "limit", "batch_size", "seed")}
    against = [asdict(line) for line in compare_results(results)]
    write_result("recall", models=models, against_base=against, **settings)


if __name__ == "__main__":
    main()
