"""A run in two processes is the run of one, bit for bit, also if one of them is killed or fails on the way."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from radistill.files import read_json
from small_recipe import small_recipe

pytestmark = pytest.mark.slow

CASE = Path(__file__).with_name("processes_case.py")
STAGES = ("data", "diagnose", "convert", "distill", "evaluate")


def command(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in so many processes, the first words being what `processes_case` is told."""
    path = os.pathsep.join([str(CASE.parents[1]), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    program = [sys.executable, *launcher, str(CASE), *arguments]
    with tempfile.TemporaryDirectory() as place:  # the launcher leaves its logs there
        given["TMPDIR"] = place
        return subprocess.run(program, capture_output=True, text=True, env=given, timeout=150)


def plain(found: Any) -> Any:
    """JSON without what tells the time or the machine's state."""
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items() if name not in ("seconds", "versions", "inputs")}
    return [plain(one) for one in found] if isinstance(found, list) else found


def result_of(run: Path) -> dict[str, Any]:
    """All that must not depend on the number of processes."""
    files = {name: (run / "data" / f"{name}.jsonl").read_bytes() for name in ("train", "calibration", "heldout")}
    files |= {path.name: path.read_bytes() for path in run.glob("**/*.safetensors")}
    shown = ("plan.json", "align.json", "evaluation.json", "tradeoff.json", "tasks/base/tasks.json")
    tables = {name: plain(read_json(run / name)) for name in shown}
    blocks = [plain(read_json(path)["value"]) for path in sorted(run.glob("align*/layer-*.json"))]
    rows = {path.name: path.read_text() for path in run.glob("tasks/*/*.jsonl")}
    return {**files, **tables, **rows, "blocks": blocks}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and the run `one` of it in one process."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.save("llama", folder / "model")
    small_recipe(
        folder,
        {"source": "teacher", "max_new_tokens": 12, "batch_size": 3, "temperature": 0.7},
        diagnose={"budget": 2, "tokens_per_batch": 60, "tradeoff": True, "selector": {"kind": "greedy", "swaps": 2}},
        align={"steps": 6, "tokens_per_batch": 100},
        distill=None,
        evaluate={"max_new_tokens": 12, "batch_size": 2, "tasks": ["recall"], "limit": 4, "contexts": [200]},
    )
    ended = command(1, "-", "-", "0", "run", str(folder / "recipe.yaml"), "--out", str(folder / "one"))
    assert ended.returncode == 0, ended.stderr
    return folder


def launched(alone: Path, name: str, who: str = "-", what: str = "-", at: int = 0) -> Any:
    return command(2, who, what, str(at), "run", str(alone / "recipe.yaml"), "--out", str(alone / name))


def lines_of(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What the processes, not their launcher, have said of the end."""
    said = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "ended by", "interrupted"))]
    assert 'Traceback (most recent call last):\n  File "' + str(CASE) not in ended.stderr
    return said


def test_two_processes_leave_what_one_does(alone: Path) -> None:
    ended = launched(alone, "two")
    assert ended.returncode == 0, ended.stderr
    found, expected = result_of(alone / "two"), result_of(alone / "one")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name
    assert len(expected["blocks"]) == 4
    assert ended.stderr.count("[data] …") == 1  # one speaks
    assert not list((alone / "two").rglob("*.tmp"))
    # And one process goes on from there, with nothing to do.
    again = command(1, "-", "-", "0", "run", str(alone / "recipe.yaml"), "--out", str(alone / "two"))
    assert again.stderr.count("done before, inputs unchanged") == 6, again.stderr


@pytest.mark.parametrize(("who", "what", "at"), [("1", "batch", 2), ("1", "fit", 1), ("0", "fit", 2), ("1", "pass", 9)])
def test_one_of_two_is_killed_and_another_number_goes_on(alone: Path, who: str, what: str, at: int) -> None:
    name = f"killed-{who}-{what}"
    started = time.monotonic()
    ended = launched(alone, name, who, what, at)
    assert ended.returncode != 0
    assert time.monotonic() - started < 90
    said = lines_of(ended)
    assert len(said) == 1, ended.stderr
    assert "the same command goes on from" in said[0]
    count = 1 if what == "pass" else 2
    again = command(count, "-", "-", "0", "run", str(alone / "recipe.yaml"), "--out", str(alone / name))
    assert again.returncode == 0, again.stderr
    assert result_of(alone / name) == result_of(alone / "one")


@pytest.mark.parametrize("who", ["0", "1"])
def test_an_error_in_one_ends_both_with_its_line(alone: Path, who: str) -> None:
    ended = launched(alone, f"error-{who}", who, "error:fit", 1)
    assert ended.returncode != 0
    assert lines_of(ended) == [f"error: fit of process {who} has failed"], ended.stderr
    shutil.rmtree(alone / f"error-{who}")
