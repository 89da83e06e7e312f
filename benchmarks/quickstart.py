"""The quick start, measured: quality of each hybrid and seconds of each stage, with versions, seed and machine.

    python benchmarks/quickstart.py [--out runs/quickstart] [--recipe src/radistill/recipes/quickstart.yaml]

A run folder that is complete is only read; otherwise the recipe is run first. The result is written to
benchmarks/results/quickstart.json.
"""

from pathlib import Path
from typing import Any

from common.result import RESULTS, ROOT, options
from radistill.files import read_json, write_json
from radistill.pipeline.run import run
from radistill.recipes import shipped_recipes
from radistill.runs.folder import RunFolder
from radistill.runs.recipe import load_recipe


def figures(folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    evaluation, record = read_json(folder / "evaluation.json"), read_json(folder / "run.json")
    arms = {name: values for name, values in evaluation.items() if name != "samples"}
    files, uniform = RunFolder(folder).hybrid(), RunFolder(folder).hybrid("uniform")
    plan, baseline = read_json(files.plan), read_json(uniform.plan)
    align, distill = read_json(files.align), read_json(files.distill)
    return {
        "kl_ratio_to_draft": arms["hybrid"]["kl"] / arms["draft"]["kl"],
        "kl_ratio_to_uniform": arms["hybrid"]["kl"] / arms["uniform"]["kl"],
        "evaluation": arms,
        "replace": plan["replace"],
        "replace_uniform": baseline["replace"],
        "acceptance_rate": {"hybrid": plan["acceptance_rate"], "uniform": baseline["acceptance_rate"]},
        "unexplained": {fit["layer"]: fit["unexplained_after"] for fit in align["layers"]},
        "tokens": {"align": align["tokens"], "distill": distill["tokens"]},
        "tokens_uniform": {"distill": read_json(uniform.distill)["tokens"]},
        "seconds": {step: values["seconds"] for step, values in record["stages"].items()},
        "seed": record["seed"],
        "versions": record["versions"],
        "machine": record["machine"],
    }


def main() -> None:
    """Run what is missing, and write the result."""
    recipe = shipped_recipes()["quickstart"]
    arguments = options(__doc__, out=ROOT / "runs" / "quickstart", recipe=recipe)
    folder = run(load_recipe(arguments.recipe), arguments.out)
    result = figures(folder)
    write_json(RESULTS / "quickstart.json", result)
    for name in ("kl_ratio_to_draft", "kl_ratio_to_uniform"):
        print(f"{name}: {result[name]:.3f}")
    print(f"seconds in stages: {sum(result['seconds'].values()):.0f}")


if __name__ == "__main__":
    main()
