"""A recipe that two processes run together, by a command of docs/distillation.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_run import write_recipe

import tiny
from radistill.files import read_json
from radistill.pipeline.recipe import load_recipe
from radistill.pipeline.run import run

LAUNCH = [
    *("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2", "--no_python"),
]
COMMAND = [sys.executable, "-c", "from radistill.cli import main; main()"]


def test_two_processes_run_a_recipe_as_one_does(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    distill = {"steps": 5, "tokens_per_batch": 100, "gradient_accumulation": 2, "new_block_learning_rate": 1e-3}
    recipe = write_recipe(
        tmp_path, diagnose={"budget": 2, "selector": "uniform"}, align={"steps": 3}, distill=distill, baseline=None
    )
    run(load_recipe(recipe), tmp_path / "one")
    command = [*COMMAND, "run", str(recipe), "--out", str(tmp_path / "two")]
    ended = subprocess.run(
        [sys.executable, *LAUNCH, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=150,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("distill: 5 steps, ") == 1
    assert ended.stdout.count("perplexity: per held-out") == 1  # one table of results, not two
    one, two = (read_json(tmp_path / name / "distill.json") for name in ("one", "two"))
    assert [row["loss"] for row in two["curve"]] == pytest.approx([row["loss"] for row in one["curve"]], rel=1e-4)
    of_one, of_two = (read_json(tmp_path / name / "evaluation.json")["rad"] for name in ("one", "two"))
    assert of_two["kl"] == pytest.approx(of_one["kl"], rel=1e-4)
    assert (tmp_path / "two" / "report.html").exists()
    assert not (tmp_path / "two" / "checkpoints").exists()
