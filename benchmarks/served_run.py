"""A run whose text vLLM writes (`server: vllm` in its recipe) against the same run without it.

    make serve-check
    python benchmarks/served_run.py [--vllm build/serve/bin/python]

SmolLM2-135M writes responses, two of its attentions are replaced, and base and hybrid are asked for numbers in texts.
Then the recipe has vLLM started: for the responses of a second run, and for the tasks of a copy of the first. Responses
must be those of the built-in generation but for near ties, and answers the same.

The result is the part `run_by_vllm` of benchmarks/results/server_text.json. The exit status is 1 if a text differs.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.result import add_part, options
from radistill import load
from radistill.data.records import DataSplits
from radistill.files import read_json, read_rows, write_text, yaml_of
from radistill.models.server.vllm import PYTHON
from radistill.pipeline.run import run
from radistill.provenance import machine, versions
from radistill.runs.recipe import load_recipe
from server_text import compared, questions
from serving import VLLM_SETTINGS

MODEL, TASK = "smollm2-135m", "recall-needle"
RECIPE = {
    "model": MODEL,
    "threads": 2,
    "data": {
        "kind": "jsonl", "path": "", "train": 12, "calibration": 4, "heldout": 4,
        "responses": {"source": "teacher", "max_new_tokens": 32},
    },
    "diagnose": {"budget": 2, "by": "redundancy", "selector": "uniform"},
    "align": {"steps": 4, "tokens_per_batch": 512},
    "distill": None,
    "finetune": {"steps": 1, "tokens_per_batch": 512},
    "evaluate": {"exact_match": False, "tasks": [TASK], "contexts": [128, 256], "limit": 4},
}  # fmt: skip


def ran(recipe: Path, out: Path, server: str | None, stages: list[str]) -> float:
    """Seconds of some stages of the recipe, with a server in the field of each that has one."""
    fields = {"data": "data.responses.server", "evaluate": "evaluate.server"}
    overrides = [f"{fields[stage]}={server}" for stage in stages if server and stage in fields]
    started = time.perf_counter()
    run(load_recipe(recipe, overrides), out, stages)
    return round(time.perf_counter() - started, 1)


def responses(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and what followed them, of the training and the held-out data."""
    splits = DataSplits.load(folder)
    found = [*splits.documents("train"), *splits.documents("heldout")]
    parts = [(list(one.tokens[: one.response_start]), list(one.tokens[one.response_start :])) for one in found]
    return [prompt for prompt, _ in parts], [text for _, text in parts]


def answers(out: Path, name: str) -> list[str]:
    """What a model of a run answered."""
    return [row["response"] for _, row in read_rows(out / "tasks" / name / f"{TASK}.jsonl")]


def main() -> None:
    """Compare."""
    given = options(__doc__, vllm="build/serve/bin/python", seed=0, threads=2)
    os.environ |= VLLM_SETTINGS | {PYTHON: str(Path(given.vllm).absolute())}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in questions(20))
        write_text(place / "prompts.jsonl", rows)
        data = RECIPE["data"] | {"path": str(place / "prompts.jsonl")}
        write_text(place / "recipe.yaml", yaml_of(RECIPE | {"data": data}))
        here, served, copy = place / "here", place / "served", place / "copy"
        seconds = {"data_here": ran(place / "recipe.yaml", here, None, ["data"])}
        seconds["data_by_vllm"] = ran(place / "recipe.yaml", served, "vllm", ["data"])
        ran(place / "recipe.yaml", here, None, ["diagnose", "convert", "distill", "finetune"])
        shutil.copytree(here, copy)
        seconds["evaluate_here"] = ran(place / "recipe.yaml", here, None, ["evaluate"])
        seconds["evaluate_by_vllm"] = ran(place / "recipe.yaml", copy, "vllm", ["evaluate"])
        prompts, ours = responses(here / "data")
        figures: dict[str, Any] = {
            "tokens": sum(map(len, ours)),
            **compared(load(MODEL), prompts, ours, responses(served / "data")[1]),
            "answers": {
                name: {"texts": len(texts), "equal": sum(map(str.__eq__, texts, answers(copy, name)))}
                for name, texts in ((name, answers(here, name)) for name in ("base", "hybrid"))
            },
            "seconds": seconds,
        }
        asked = [read_json(copy / "tasks" / name / "tasks.json") for name in ("base", "hybrid")]
        assert all(summary["server_model"] for summary in asked)
    print(json.dumps(figures, indent=1))
    add_part("server_text", "run_by_vllm", figures | {"versions": versions(), "machine": machine()})
    wrong = figures["different"] or any(each["equal"] < each["texts"] for each in figures["answers"].values())
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
