"""A finished run folder with invented, plausible figures: for tests of the report only."""

import json
import math
import random
from pathlib import Path
from typing import Any

from radistill.runs.recipe import Recipe

RECIPE = """\
model: smollm2-135m
teacher: null
seed: 0
threads: 2
data: {kind: reasoning-gym, tasks: [gsm_symbolic, codeio], train: 256, calibration: 16, heldout: 16}
diagnose:
  budget: 10
  selector: {kind: bayes, trials: 60, startup: 10, warm_start: true}
  objective: acceptance
  by: redundancy
convert:
  target: {kind: granite-hybrid, groups: 1}
  init: zero
align: {steps: 77}
distill: {steps: 120}
finetune: {steps: 20}
arms:
  uniform:
    selector: {kind: uniform}
    target: {kind: granite-hybrid, groups: heads}
    init: transfer
    align: null
"""

REPLACE = [3, 6, 7, 11, 14, 18, 22, 25, 28, 29]


def write_example_run(folder: Path) -> Path:
    """Write every file that a report reads into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arms" / "uniform").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name, content in {
        "run.json": run(),
        "plan.json": plan(30, REPLACE),
        "arms/uniform/plan.json": uniform_plan(30, 10),
        "align.json": align(REPLACE),
        "distill.json": distill(0.21, 0.137),
        "arms/uniform/distill.json": distill(8.9, 2.31),
        "finetune.json": distill(0.137, 0.151, steps=20, evaluations=3),
        "arms/uniform/finetune.json": distill(2.31, 2.4, steps=20, evaluations=3),
        "evaluation.json": evaluation(),
    }.items():
        write(folder / name, content)
    return folder


def put_on_record(folder: Path, recipe: Recipe) -> None:
    """Let `folder` be of a run that was made with this recipe from its beginning to its end."""
    recipe.save(folder / "recipe.yaml")
    sections = recipe.model_dump(mode="json")
    record = run()
    for name, arm in sections.pop("arms").items():
        record["stages"][f"diagnose:{name}"] = {"recipe": {"arms": {name: arm}}}
    record["stages"]["convert:hybrid"]["blocks"] = "an SSM (Mamba-2)"
    record["stages"]["evaluate"]["recipe"] = sections
    write(folder / "run.json", record)


def write(path: Path, content: Any) -> None:
    """Write JSON; NaN is allowed, as a hostile file may hold it."""
    path.write_text(json.dumps(content), encoding="utf-8")


def plan(num_layers: int, replace: list[int], trials: int = 60) -> dict[str, Any]:
    """A plan found by the Bayesian search: every layer alone, then `trials` sets."""
    chance = random.Random(0)
    scores = {
        layer: round(chance.uniform(0.90, 0.955) if layer in replace else chance.uniform(0.80, 0.93), 4)
        for layer in range(num_layers)
    }
    scores[0] = 0.31
    if num_layers > 1:
        scores[1] = 0.12
    search = [{"trial": layer, "layers": [layer], "value": scores[layer]} for layer in range(num_layers)]
    for trial in range(trials):
        layers = sorted(chance.sample(range(num_layers), len(replace))) if trial != trials - 7 else replace
        value = 0.74 if layers == replace else 0.22 + 0.4 * (1 - math.exp(-trial / 15)) + chance.gauss(0, 0.05)
        search.append({"trial": num_layers + trial, "layers": layers, "value": round(value, 4)})
    return {
        "version": 1,
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "model_fingerprint": "5f1c9d" * 10,
        "num_layers": num_layers,
        "replace": replace,
        "scores": {str(layer): score for layer, score in scores.items()},
        "score_kind": "acceptance with only this layer's attention skipped",
        "objective": {"name": "acceptance", "value": 0.74},
        "acceptance_rate": 0.74,
        "mean_accepted_length": {"2": 1.29, "4": 2.06, "8": 2.75},
        "kl": 0.71,
        "selector": {"kind": "bayes", "trials": trials, "startup": 10, "warm_start": True},
        "search": search,
        "seconds": 251.3,
        "forward_tokens": 312_480,
        "calibration_hash": "c0ffee" * 10,
        "seed": 0,
        "versions": {"python": "3.11.9"},
    }


def uniform_plan(num_layers: int, count: int) -> dict[str, Any]:
    """The baseline's plan: no scores, no search."""
    replace = [index * num_layers // count for index in range(count)]
    return plan(num_layers, replace, trials=1) | {
        "scores": None,
        "score_kind": None,
        "selector": {"kind": "uniform"},
        "search": [],
        "acceptance_rate": 0.28,
    }


def align(layers: list[int]) -> dict[str, Any]:
    chance = random.Random(1)
    fits = [
        {
            "layer": layer,
            "unexplained_before": 1.0,
            "unexplained_after": round(chance.uniform(0.13, 0.29), 4),
            "steps": 77,
            "seconds": round(chance.uniform(14, 17), 2),
            "losses": [1.0, 0.5, 0.3],
        }
        for layer in layers
    ]
    return {"layers": fits, "tokens": 157_696, "seconds": 154.8}


def distill(first: float, last: float, steps: int = 120, evaluations: int = 7) -> dict[str, Any]:
    """A run whose held-out KL falls from `first` to `last`."""
    chance = random.Random(2)
    fall = [last + (first - last) * math.exp(-5 * index / max(evaluations - 1, 1)) for index in range(evaluations)]
    if evaluations > 1:
        fall[-1] = last
    return {
        "steps": steps,
        "tokens": steps * 812,
        "seconds": 401.0,
        "curve": [
            {
                "step": step,
                "tokens": step * 812,
                "loss": (last + (first - last) * math.exp(-5 * step / steps)) * chance.uniform(0.85, 1.15),
            }
            for step in range(1, steps + 1)
        ],
        "evaluations": [
            {
                "step": index * steps // max(evaluations - 1, 1),
                "tokens": index * steps // max(evaluations - 1, 1) * 812,
                "kl": kl,
                "agreement": 1 / (1 + kl),
            }
            for index, kl in enumerate(fall)
        ],
    }


def arm(kl: float, agreement: float, perplexity: float, solved: int | None, kv: int) -> dict[str, Any]:
    share = None if solved is None else solved / 48
    spread = 0.0 if share is None else 1.96 * math.sqrt((share + 0.02) * (1 - share) / 48)
    return {
        "kl": kl,
        "agreement": agreement,
        "sampled_acceptance": agreement if agreement == 1 else 0.9 * agreement,
        "perplexity": perplexity,
        "exact_match": share,
        "exact_match_n": 0 if solved is None else 48,
        "unfinished": 0 if solved is None or solved > 15 else 3,
        "exact_match_interval": None if share is None else [max(0.0, share - spread), share + spread],
        "kv_bytes_per_token": kv,
        "ssm_state_bytes": 0 if kv == 23_040 else 1_474_560,
        "n_documents": 16,
        "n_tokens": 2_914,
    }


def evaluation() -> dict[str, Any]:
    sample = {
        "prompt": "A baker has 24 rolls. She sells 9 and bakes 12 more at noon.\nHow many rolls does she have now?",
        "base": "She starts with 24 rolls and sells 9, so 24 - 9 = 15 are left. 15 + 12 = 27.\n\nThe answer is 27.",
        "draft": "She starts with 24 rolls and sells 9 9 9, so the the rolls are are 24 24 and and",
        "hybrid": "She starts with 24 rolls and sells 9, so 24 - 9 = 15 rolls remain. 15 + 12 = 27.\n\nThe answer: 27.",
        "uniform": "The the of of 9 a a rolls rolls and and and and and",
    }
    code = {
        "prompt": "What does it return for n = 4?\n\ndef f(n):\n    return [i * i for i in range(n) if i < n > 2]",
        "base": "For n = 4 the function returns [0, 1, 4, 9].",
        "draft": "For n = 4 the function returns [0, 1, 1, 1, 1, 1",
        "hybrid": "For n = 4 the function returns [0, 1, 4, 9].",
        "uniform": "return return n n n < n",
    }
    hostile = {
        "prompt": "<script>alert('prompt')</script> & \"quotes\"",
        "base": "<script>alert(1)</script>",
        "draft": "</div></details><img src=x onerror=alert(1)>",
        "hybrid": "{{ 7 * 7 }} {% raw %} &amp; \u202e reversed",
        "uniform": "",
    }
    return {
        "base": arm(0.0, 1.0, 1.42, 17, 23_040),
        "draft": arm(0.83, 0.655, 3.31, 2, 15_360),
        "hybrid_start": arm(0.21, 0.806, 1.74, None, 15_360),
        "hybrid": arm(0.137, 0.851, 1.61, 14, 15_360),
        "uniform_start": arm(8.88, 0.021, 10_240.0, None, 15_360),
        "uniform": arm(2.31, 0.412, 14.2, 0, 15_360),
        "samples": [sample, code, hostile],
    }


def run() -> dict[str, Any]:
    stages = {
        "data": 92.4,
        "diagnose:hybrid": 251.3,
        "diagnose:uniform": 4.2,
        "convert:hybrid": 5.1,
        "convert:uniform": 4.9,
        "distill:hybrid": 555.8,
        "distill:uniform": 401.5,
        "finetune:hybrid": 61.0,
        "finetune:uniform": 58.4,
        "evaluate": 64.0,
    }
    inputs: dict[str, Any] = {"evaluate": {"arms": {}}}
    for name, replace in {"hybrid": REPLACE, "uniform": uniform_plan(30, 10)["replace"]}.items():
        convert = {"replace": replace}
        distill = {"convert": convert, "distill": {"steps": 120}}
        finetune = {"distill": distill, "finetune": {"steps": 20}}
        inputs |= {f"convert:{name}": convert, f"distill:{name}": distill, f"finetune:{name}": finetune}
        inputs["evaluate"]["arms"][name] = finetune
    return {
        "versions": {
            "radistill": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "optuna": "4.6.0",
            "datasets": "4.4.1",
        },
        "machine": {
            "platform": "Linux-6.8-x86_64-with-glibc2.39",
            "processor": "Example CPU @ 2.50GHz",
            "cores": 2,
            "threads": 2,
            "memory_gib": 15.6,
            "accelerators": [],
        },
        "seed": 0,
        "stages": {
            name: {
                "inputs": inputs.get(name, {}),
                "outputs": [],
                "seconds": seconds,
                "finished": f"2026-01-05T10:{index:02d}:00+00:00",
            }
            for index, (name, seconds) in enumerate(stages.items())
        },
    }
