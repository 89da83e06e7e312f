"""The best weights are kept, a run without progress ends early, and one that diverges is stopped."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import HELDOUT, RESUMABLE, lasting, models, run, steps_kept, weights
from torch import Tensor

from radistill.distillation import loop
from radistill.distillation.heldout import distance
from radistill.distillation.settings import DistillSettings
from radistill.distillation.stopping import WINDOW, Divergence, best_step, out_of_patience
from radistill.errors import RadistillError

# Rates so high that the student gets worse after a few steps.
WORSENING = DistillSettings.model_validate(
    {
        **RESUMABLE.model_dump(),
        "steps": 9,
        "new_block_learning_rate": 0.3,
        "other_learning_rate": 0.03,
        "warmup_ratio": 1.0,
        "eval_steps": 1,
    }
)


def log(*measures: tuple[int, float]) -> list[dict[str, Any]]:
    """Held-out measures as a training logs them."""
    return [{"step": step, "kl": kl} for step, kl in measures]


@pytest.mark.parametrize(
    ("measures", "best"),
    [
        ([(0, 1.0)], 0),
        ([(0, 1.0), (5, 0.9), (9, 0.8)], 9),
        ([(0, 1.0), (5, 0.7), (9, 0.8)], 5),
        ([(0, 1.0), (5, 0.7), (9, 0.7)], 5),
        ([(0, 0.1), (5, 0.7), (9, 0.6)], 9),  # worse than the start, which was not trained
    ],
)
def test_best_step(measures: list[tuple[int, float]], best: int) -> None:
    assert best_step(log(*measures)) == best


def test_patience_counts_measures_after_the_best() -> None:
    measures = log((0, 1.0), (5, 0.7), (10, 0.8), (15, 0.9))
    assert [out_of_patience(measures, patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert not out_of_patience(log((0, 1.0)), 1)


def test_divergence_compares_means_of_ten_steps() -> None:
    watch = Divergence(2.0)
    steady = [1.0] * WINDOW
    assert not any(map(watch.describe, [50.0, *steady]))  # one bad batch, before and after
    assert watch.describe(9.0) is None
    assert not any(map(watch.describe, steady))
    assert [watch.describe(2.5) is None for _ in range(WINDOW)] == [True] * 6 + [False] * 4
    resumed = Divergence(2.0, [*steady, *[2.5] * 6])
    found = resumed.describe(2.5)
    assert found is not None
    assert "2.05 in the mean of the last 10 steps and 1 before (distill.divergence is 2)" in found


def test_no_divergence_near_the_teacher_or_without_a_factor() -> None:
    assert not any(map(Divergence(5.0).describe, [0.0] * WINDOW + [0.04] * WINDOW))
    assert not any(map(Divergence(None).describe, [1.0] * WINDOW + [math.inf] * WINDOW))


@pytest.fixture(scope="module")
def worsened() -> tuple[dict[str, Any], dict[str, Tensor]]:
    teacher, student = models()
    return lasting(run(student, teacher, WORSENING)), weights(student)


def test_the_best_weights_come_out(worsened: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path) -> None:
    """Kept in memory by the fixture's run, and in a folder here."""
    teacher, student = models()
    result = run(student, teacher, WORSENING, folder=tmp_path)
    measures = {row["step"]: row["kl"] for row in result.evaluations if row["step"] > 0}
    assert measures[result.kept_step] == min(measures.values()) < measures[9]
    assert distance(teacher.network, student.network, HELDOUT, teacher.pad_token_id, 110).kl == pytest.approx(
        measures[result.kept_step], rel=1e-6
    )
    assert lasting(result) == worsened[0]
    assert all(torch.equal(tensor, worsened[1][name]) for name, tensor in weights(student).items())
    assert steps_kept(tmp_path) == sorted({result.kept_step, 8, 9})


def test_the_last_weights_come_out_if_asked_for() -> None:
    teacher, student = models()
    result = run(student, teacher, WORSENING.model_copy(update={"keep": "last"}))
    assert result.kept_step == 9
    assert distance(teacher.network, student.network, HELDOUT, teacher.pad_token_id, 110).kl == pytest.approx(
        result.evaluations[-1]["kl"], rel=1e-6
    )


def test_out_of_patience_it_ends_and_is_finished(
    tmp_path: Path,
    worsened: tuple[dict[str, Any], dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted when its patience has begun to run out, it goes on with what is left of it."""
    impatient = WORSENING.model_copy(update={"patience": 2, "save_seconds": 10_000})
    best = worsened[0]["kept_step"]
    original, calls = loop.chunked_sum, []

    def interrupting(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2 * best + 1:  # in the step after the best one
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(loop, "chunked_sum", interrupting)
    teacher, student = models()
    with pytest.raises(KeyboardInterrupt):
        run(student, teacher, impatient, folder=tmp_path)
    for _ in range(2):  # the second time from what the first has left, without a step
        teacher, student = models()
        result = run(student, teacher, impatient, folder=tmp_path)
        assert (result.steps, result.kept_step) == (best + 2, best)
        assert result.curve == worsened[0]["curve"][: best + 2]
        assert all(torch.equal(tensor, worsened[1][name]) for name, tensor in weights(student).items())
        monkeypatch.setattr(loop, "chunked_sum", None)
    printed = capsys.readouterr().err
    assert f"ended at step {best + 2} of 9, out of patience" in printed
    assert f"all {best + 2} steps were done before" in printed


def test_a_diverging_loss_stops_the_run_and_saves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = loop.chunked_sum, []

    def diverging(*arguments: Any) -> Tensor:
        calls.append(1)
        return original(*arguments) * (50 if len(calls) > 2 * 15 else 1)

    monkeypatch.setattr(loop, "chunked_sum", diverging)
    settings = RESUMABLE.model_copy(update={"steps": 30, "save_seconds": 10_000})
    teacher, student = models()
    with pytest.raises(RadistillError, match=r"the loss diverges, .* \(distill.divergence is 5\), at step 1\d, on"):
        run(student, teacher, settings, folder=tmp_path)
    saved = json.loads((tmp_path / "failed_batch.json").read_text())
    assert 15 < saved["step"] < 20
    assert saved["documents"]
    assert saved["reason"].startswith("the loss diverges")
