"""The students of the benchmarks: geometry, rates to choose from, how they are trained, and tokens to a quality."""

import math
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from radistill import distill, new_parameters
from radistill.conversion.targets import GraniteHybridSettings
from radistill.distillation.checkpoints import remove_checkpoints
from radistill.distillation.settings import DistillSettings
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document

GEOMETRY = GraniteHybridSettings(groups="heads")
"""Of all arms alike; a transfer needs a B/C group for each head."""

RATES = {"zero": (1e-4, 3e-4, 1e-3), "transfer": (1e-4, 3e-4, 1e-3), "fitted": (1e-5, 3e-5, 1e-4)}
"""Three for each start; one that is near the teacher already needs smaller ones, or training leads away from it."""

GRID = tuple(float(f"{digit}e{exponent}") for exponent in range(-7, 1) for digit in (1, 3))
"""Every rate that may be tried, half a decade apart."""


def first_tokens(documents: Sequence[Document], tokens: int) -> list[Document]:
    """The first documents that together have `tokens` tokens; all of them, if they have fewer."""
    before = accumulate((len(document.tokens) for document in documents), initial=0)
    return [document for document, count in zip(documents, before, strict=False) if count < tokens]


def best_rate(init: str, probe: Callable[[float], float], further: int = 0) -> tuple[float, dict[str, float | None]]:
    """The rate that ends a short training (`probe`) at the lowest KL, and what each gave.

    The start's three are tried; then, as long as the best is the largest or smallest so far, the next one beyond it, at
    most `further` of them: a best that has no worse one on either side may not be the best. A rate at which training
    breaks down (the gradient is not finite) is None, and out of the choice.

    Raises:
        RadistillError: the last one, if none of the three can be trained with.
    """
    found: dict[float, float | None] = {}
    kls: dict[float, float] = {}

    def attempt(rate: float) -> None:
        found[rate] = None
        try:
            found[rate] = kls[rate] = probe(rate)
        except RadistillError as error:
            if rate == RATES[init][-1] and not kls:
                raise
            print(f"{init}, rate {rate:g}: {error}", file=sys.stderr)

    for rate in RATES[init]:
        attempt(rate)
    while True:
        best = min(kls, key=kls.__getitem__)
        at = GRID.index(best)
        beyond = [rate for rate in GRID[max(at - 1, 0) : at + 2] if rate not in found]
        if not beyond or len(found) == len(RATES[init]) + further:
            return best, {f"{rate:g}": found[rate] for rate in sorted(found)}
        attempt(beyond[0])


def train_blocks(
    student: Model,
    teacher: Model | StoredTeacher,
    train: Sequence[Document],
    heldout: Sequence[Document],
    *,
    replace: Sequence[int],
    steps: int,
    tokens_per_batch: int,
    rate: float,
    other_rate: float = 0.0,
    precision: str | None,
    measures: int,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Train end to end at a constant rate, so that no point of the curve depends on its end.

    Held-out KL is measured before the first step and then `measures` times, to a stored teacher over what is kept.
    A training that was stopped goes on; its checkpoints are removed when it is done.
    """
    settings = DistillSettings(
        steps=steps,
        tokens_per_batch=tokens_per_batch,
        new_block_learning_rate=rate,
        other_learning_rate=other_rate,
        scheduler="constant_with_warmup",
        precision=precision,
        eval_steps=math.ceil(steps / measures),
        keep="last",
        teacher_store=TeacherStoreSettings(top_k=teacher.top_k) if isinstance(teacher, StoredTeacher) else None,
        divergence=None,  # a rate that is too high is an answer too
    )
    result = distill(
        student, teacher, train, heldout, settings,
        new_parameters=new_parameters(student, replace), folder=folder, seed=seed,
    )  # fmt: skip
    remove_checkpoints(folder)
    return {"tokens": result.tokens, "seconds": result.seconds, "evaluations": result.evaluations}


def tokens_until(arm: dict[str, Any], kl: float) -> float | None:
    """Tokens at an arm's first measure that is no higher than `kl`; None if it never gets there."""
    return next((point["tokens"] for point in arm["evaluations"] if point["kl"] <= kl), None)


def token_ratio(arm: dict[str, Any], baseline: dict[str, Any]) -> float | None:
    """Tokens until an arm is no worse than the baseline at its end, over the baseline's; None if never."""
    reached = tokens_until(arm, baseline["evaluations"][-1]["kl"])
    return None if reached is None else reached / baseline["tokens"]
