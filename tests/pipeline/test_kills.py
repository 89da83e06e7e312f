"""A run with all stages, killed at its writes again and again: it ends as one that nobody disturbed."""

import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
from kill_case import start
from test_run_record import TRAINING, lasting

import tiny
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

SECTIONS: dict[str, Any] = {
    "diagnose": {"budget": 2, "by": "redundancy", "selector": {"kind": "bayes", "trials": 5, "startup": 3}},
    "align": {"steps": 3},
    "distill": {"steps": 4, **TRAINING, "rate_search": {"rates": [1e-4, 1e-3], "further": 0}},
    "finetune": {"steps": 2, **TRAINING},
    "arms": {
        "swaps": {"by": "replaceability", "selector": "greedy", "distill": {"teacher_store": {"top_k": 8}}},
        "writes": {"selector": "uniform", "finetune": None, "distill": {"rate_search": None, "on_policy": {}}},
    },
    "evaluate": {"max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and the run `out` of it."""
    folder = tmp_path_factory.mktemp("kills")
    tiny.save("llama", folder / "model")
    recipe = small_recipe(folder, {"source": "teacher", "max_new_tokens": 4}, **SECTIONS)
    run(load_recipe(recipe), folder / "out")
    return folder


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """A server that forks; the folder of its socket goes here, because a worker of xdist may end without finalizers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["radistill.pipeline.run"])
    yield context
    util._run_finalizers()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_killed_at_its_writes_a_run_ends_the_same(
    finished: Path, tmp_path: Path, number: signal.Signals, processes: Any
) -> None:
    kills = 0
    while True:
        # A start that ends at its first writes may come no further than the one before. A later one does: a checkpoint
        # is some thirty writes, those that remove an old one included. After Ctrl-C, it is written to its end.
        at, after = 1 + 7 * kills % (26 if number is signal.SIGINT else 40), kills % 3 == 0
        process = processes.Process(target=start, args=(finished / "recipe.yaml", tmp_path / "out", number, at, after))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode in (-number, 128 + number)
        kills += 1
        assert kills < 500
    print(f"{kills} times {number.name}")
    assert kills >= 50
    ours, theirs = lasting(tmp_path / "out"), lasting(finished / "out")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()
