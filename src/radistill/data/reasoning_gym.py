"""Source `reasoning-gym`: exercises from the package of that name, each with a verifier (arXiv 2505.24760).

The generator of `codeio` executes code that is shipped with the package, in this process; see docs/how-to/data.md.
"""

import ast
import contextlib
import difflib
import hashlib
import inspect
import io
import json
import os
import random
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from radistill.data.examples import Example, Rows
from radistill.data.settings import ReasoningGymData
from radistill.errors import RadistillError

_LITERAL = "python literal"
_EVALUATING = re.compile(r"(?<![\w.])(?:sp\.|sympy\.)?(?:eval|exec|parse_expr|sympify)\(")
_SECONDS = 5.0


def read(settings: ReasoningGymData, seed: int) -> Rows:
    """Generate exercises of all tasks in turn, each as it is read."""
    # Splits may discard duplicates, so there are more indices than examples; rows are made only when they are read.
    size = 2 * (settings.train + settings.calibration + settings.heldout) + 1000
    generators = [_exercises(task, _create(task, options, seed, size)) for task, options in settings.tasks.items()]
    return Rows("reasoning-gym " + ", ".join(settings.tasks), _in_turn(generators))


def _in_turn(generators: list[Iterator[Example]]) -> Iterator[Example]:
    for turn in zip_longest(*generators):
        yield from (example for example in turn if example is not None)


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
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
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
        verifier = {
            "kind": "reasoning-gym",
            "task": task,
            "answer": None if entry["answer"] is None else str(entry["answer"]),
            "metadata": {key: kept for key, value in metadata.items() if (kept := _kept(value)) is not None},
        }
        yield Example.of_user(f"{task}-{index}", entry["question"], verifier=verifier)


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


@cache
def evaluates_answers(task: str) -> bool:
    """Whether a task's verifier evaluates a model's answer as Python."""
    return _EVALUATING.search(inspect.getsource(registry()[task][0].score_answer)) is not None


def full_score(verifier: Mapping[str, Any], answer: str) -> bool:
    """Whether an exercise's own verifier gives an answer the full score; what it stumbles over is wrong."""
    metadata = {key: _restored(value) for key, value in verifier.get("metadata", {}).items()}
    entry = {"answer": verifier["answer"], "metadata": metadata}
    scorer = _scorer(verifier["task"])

    def scores() -> bool:
        try:
            return bool(scorer.score_answer(answer, entry) == 1.0)
        except Exception:  # any error, such as a parser's
            return False

    return _in_time(scores) if evaluates_answers(verifier["task"]) else scores()


def _in_time(holds: Callable[[], bool]) -> bool:
    """Whether it holds, in a copy of this process: what is evaluated may never end, or end its process."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if holds() else 1)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return ended[1] == 0


@cache
def _scorer(task: str) -> Any:
    dataset, config = registry()[task]
    return dataset(config(seed=0))


def _kept(value: object) -> Any:
    """A value that survives JSON: itself, or as a literal where JSON would change it; None if there is neither.

    Verifiers compare with tuples, and look up numbers in mappings; JSON makes lists and texts of them.
    """
    if _equals(value, lambda: json.loads(json.dumps(value, allow_nan=False))):
        return value
    return {_LITERAL: repr(value)} if _equals(value, lambda: ast.literal_eval(repr(value))) else None


def _restored(value: Any) -> Any:
    return ast.literal_eval(value[_LITERAL]) if isinstance(value, dict) and value.keys() == {_LITERAL} else value


def _equals(value: object, again: Callable[[], object]) -> bool:
    try:
        return bool(again() == value)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False
