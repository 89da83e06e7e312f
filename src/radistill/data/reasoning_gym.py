"""Source `reasoning-gym`: exercises from the package of that name, each with a verifier (arXiv 2505.24760).

The generator of `codeio` executes code that is shipped with the package, in this process; see docs/data.md.
"""

import contextlib
import difflib
import hashlib
import io
import json
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from radistill.data.examples import Example, Rows
from radistill.data.settings import ReasoningGymData
from radistill.errors import RadistillError


def read(settings: ReasoningGymData, seed: int) -> Rows:
    """Generate exercises of all tasks in turn, each as it is read."""
    # Splits may discard duplicates, so there are more indices than examples; rows are made only when they are read.
    size = 2 * (settings.train + settings.calibration + settings.heldout) + 1000
    generators = [_exercises(task, _create(task, options, seed, size)) for task, options in settings.tasks.items()]
    return Rows("reasoning-gym " + ", ".join(settings.tasks), _in_turn(generators))


def _in_turn(generators: list[Iterator[Example]]) -> Iterator[Example]:
    while generators:
        for generator in list(generators):
            example = next(generator, None)
            if example is None:
                generators.remove(generator)
            else:
                yield example


def _create(task: str, options: dict[str, Any], seed: int, size: int) -> Any:
    registered = registry()
    if task not in registered:
        close = difflib.get_close_matches(task, registered, n=4, cutoff=0.4) or ["gsm_symbolic", "codeio"]
        raise RadistillError(f"data.tasks: reasoning-gym has no task {task!r}; close names are {', '.join(close)}")
    dataset, config = registered[task]
    # Row i is drawn from seed + i, so neighbouring seeds would share all but one of their rows.
    spread = int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:4])
    try:
        return dataset(config(seed=spread, size=size, **options))
    except (TypeError, ValueError, AssertionError) as error:
        raise RadistillError(f"data.tasks: {task} does not take {options}: {error or type(error).__name__}") from None


def registry() -> dict[str, Any]:
    """The tasks of the installed package: name -> (data set class, configuration class).

    Raises:
        RadistillError: if the package is not installed.
    """
    try:
        import reasoning_gym.factory
    except ImportError:
        raise RadistillError("reasoning-gym is not installed: pip install 'radistill[generator]'") from None
    return reasoning_gym.factory.DATASETS


def _exercises(task: str, dataset: Any) -> Iterator[Example]:
    for index in range(dataset.size):
        entry = _entry(dataset, index)
        metadata = entry["metadata"]
        # codeio hands out an empty exercise when the code that it executed has failed.
        if task == "codeio" and metadata["input_data"] == metadata["output_data"] == {}:
            continue
        yield Example(
            id=f"{task}-{index}",
            messages=({"role": "user", "content": entry["question"]},),
            verifier={
                "kind": "reasoning-gym",
                "task": task,
                "answer": str(entry["answer"]),
                "metadata": {key: value for key, value in metadata.items() if _is_json(value)},
            },
        )


def _entry(dataset: Any, index: int) -> dict[str, Any]:
    """Generate one exercise, silently, with the global random states seeded and afterwards restored."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(index)
    np.random.seed(index)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry: dict[str, Any] = dataset[index]
            return entry
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
