"""Fits of blocks and a search by them, in one process of one thread and in two processes of one thread each.

    python benchmarks/processes.py [--steps 6] [--passes 18]

SmolLM2-135M: a block is fitted to each of its 30 attentions, and a greedy search judges sets of them. The two processes
are started by torchrun. Plan, blocks and losses must be the same, or the benchmark ends with an error. It wants a
machine with two idle cores, and takes some minutes.

The result is written to benchmarks/results/processes.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.result import options, write_result
from radistill import load
from radistill.data.settings import ReasoningGymData
from radistill.data.sources import draw
from radistill.diagnosis.diagnose import diagnose
from radistill.distillation.align import AlignSettings
from radistill.distillation.blocks import fit_blocks
from radistill.files import write_json
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.processes import join
from radistill.provenance import seed_everything

TEXTS, CALIBRATION, TOKENS = 40, 8, 128
GOAL = 1.6


def documents(model: Model) -> list[Document]:
    """Exercises with their answers, all cut to one length."""
    settings = ReasoningGymData(tasks={"gsm_symbolic": {}}, train=4 * TEXTS, heldout=1)
    found = []
    for example in draw(settings, 0).train:
        answer = (example.verifier or {}).get("answer", "")
        messages = [*example.messages, {"role": "assistant", "content": str(answer)}]
        tokens = model.tokenizer.apply_chat_template(messages, return_dict=False)
        if len(tokens) >= TOKENS:
            found.append(Document(example.id, tuple(tokens[:TOKENS]), 1))
    return found[:TEXTS]


def work(folder: Path, steps: int, passes: float) -> None:
    """Fit and search, in this process and those started with it; the main one leaves what came of it."""
    seed_everything(0, 1)
    processes, model = join("cpu"), load("smollm2-135m")
    texts = documents(model)
    processes.wait()
    started = time.perf_counter()
    settings = AlignSettings(steps=steps)
    blocks = fit_blocks(model, texts, settings, folder=folder / "blocks", processes=processes)
    fitted = time.perf_counter()
    plan = diagnose(
        model,
        texts[:CALIBRATION],
        6,
        substitutes=blocks,
        passes=passes,
        tokens_per_batch=TOKENS,
        folder=folder / "search",
        processes=processes,
    )
    ended = time.perf_counter()
    if processes.is_main:
        records = sorted((folder / "blocks").glob("layer-*.json"))
        losses = {path.name: json.loads(path.read_text())["value"]["fit"]["losses"] for path in records}
        same = {"plan": plan.replace, "search": [step.value for step in plan.search], "blocks": blocks.fingerprint}
        times = {"fits": fitted - started, "search": ended - fitted}
        write_json(folder / "found.json", {"seconds": times, "same": same | {"losses": losses}})


def measured(count: int, folder: Path, *arguments: str) -> dict[str, Any]:
    """What so many processes found, and their seconds."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(
        [sys.executable, *launcher, __file__, *arguments, "--work", str(folder)], env=environment, check=True
    )
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    """Both, and how many times as fast two are."""
    given = options(__doc__, steps=6, passes=18.0, work="")
    if given.work:
        work(Path(given.work), given.steps, given.passes)
        return
    arguments = ("--steps", str(given.steps), "--passes", str(given.passes))
    with tempfile.TemporaryDirectory() as place:
        one, two = (measured(count, Path(place, str(count)), *arguments) for count in (1, 2))
    if one["same"] != two["same"]:
        raise SystemExit("two processes have found something else than one")
    ratios = {name: round(one["seconds"][name] / two["seconds"][name], 2) for name in ("fits", "search")}
    whole = round(sum(one["seconds"].values()) / sum(two["seconds"].values()), 2)
    for name, ratio in (*ratios.items(), ("both", whole)):
        print(f"{name}: two processes of one thread are {ratio:.2f} times as fast as one")
    write_result(
        "processes",
        seconds={
            "one process": {name: round(value, 1) for name, value in one["seconds"].items()},
            "two processes": {name: round(value, 1) for name, value in two["seconds"].items()},
        },
        times_as_fast=ratios | {"both": whole},
        goal=GOAL,
        same={"plan": one["same"]["plan"], "blocks": one["same"]["blocks"]},
        steps=given.steps,
        passes=given.passes,
        tokens=TEXTS * TOKENS,
        calibration_tokens=CALIBRATION * TOKENS,
    )


if __name__ == "__main__":
    main()
