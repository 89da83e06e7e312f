"""Next-token fine-tuning: its loss, what it trains, which weights it keeps, and that it takes no note of a teacher."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import (
    HELDOUT,
    REPLACED,
    RESUMABLE,
    STORED,
    TRAIN,
    before_batch,
    documents,
    lasting,
    models,
    steps_kept,
    store_of,
    weights,
    with_lost_numbers,
)
from pydantic import ValidationError
from test_losses import log_softmax
from torch import Tensor

import tiny
from radistill.conversion import new_parameters
from radistill.distillation.distill import DistillResult, finetune
from radistill.distillation.settings import FinetuneSettings
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document

QUICK: dict[str, Any] = {
    "steps": 3,
    "tokens_per_batch": 100,
    "new_block_learning_rate": 1e-2,
    "other_learning_rate": 1e-3,
    "eval_steps": 2,
    "report_to": "none",
}


def run(student: Model, teacher: Any, heldout: list[Document] = HELDOUT, **arguments: Any) -> DistillResult:
    folder = arguments.pop("folder", None)
    settings = FinetuneSettings.model_validate({**QUICK, **arguments})
    new = new_parameters(student, REPLACED)
    return finetune(student, teacher, TRAIN, heldout, settings, new_parameters=new, folder=folder)


def cross_entropy(model: Model, texts: list[Document]) -> float:
    """Mean over all response tokens, documents run alone, in float64."""
    values = []
    for document in texts:
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([document.tokens])).logits[0].tolist()
        for position in range(document.response_start, len(document.tokens)):
            values.append(-log_softmax(logits[position - 1], 1.0)[document.tokens[position]])
    return sum(values) / len(values)


def test_the_first_loss_is_the_mean_cross_entropy_of_all_response_tokens() -> None:
    teacher, student = models("random")
    expected, before = cross_entropy(student, TRAIN), cross_entropy(student, HELDOUT)
    result = run(student, teacher, steps=1, tokens_per_batch=1, gradient_accumulation=len(TRAIN))
    assert result.curve[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert result.evaluations[0]["cross_entropy"] == pytest.approx(before, rel=1e-5)
    assert result.evaluations[-1]["cross_entropy"] == pytest.approx(cross_entropy(student, HELDOUT), rel=1e-5)
    assert result.response_tokens == sum(len(document.tokens) - document.response_start for document in TRAIN)


def test_it_learns_the_tokens_and_leaves_the_teacher_behind() -> None:
    teacher, student = models("zero")
    result = run(student, teacher, heldout=TRAIN, steps=30, tokens_per_batch=1000, other_learning_rate=1e-2)
    first, last = result.evaluations[0], result.evaluations[-1]
    assert last["cross_entropy"] < 0.7 * first["cross_entropy"]
    assert last["kl"] > first["kl"]


def test_no_teacher_takes_part_in_the_training() -> None:
    """Another teacher changes the held-out measures, and nothing else."""
    outcomes = []
    for seed in (0, 7):
        _, student = models("random")
        result = run(student, tiny.model("llama", seed=seed))
        outcomes.append((result, weights(student)))
    (ours, our_weights), (others, their_weights) = outcomes
    assert ours.curve == others.curve
    assert ours.evaluations[0]["kl"] != others.evaluations[0]["kl"]
    assert all(torch.equal(tensor, their_weights[name]) for name, tensor in our_weights.items())


@pytest.mark.parametrize("frozen", ["new_block_learning_rate", "other_learning_rate"])
def test_a_rate_of_zero_freezes(frozen: str) -> None:
    teacher, student = models("random")
    before, new = weights(student), new_parameters(student, REPLACED)
    run(student, teacher, **{frozen: 0})
    changed = {name for name, tensor in weights(student).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= new if frozen == "other_learning_rate" else not changed & new


def test_the_best_weights_are_those_of_the_lowest_cross_entropy() -> None:
    teacher, student = models("random")
    rising = {"steps": 8, "eval_steps": 1, "new_block_learning_rate": 0.3, "other_learning_rate": 0.03}
    result = run(student, teacher, keep="best", warmup_ratio=1.0, **rising)
    measures = {row["step"]: row["cross_entropy"] for row in result.evaluations if row["step"]}
    assert measures[result.kept_step] == min(measures.values())
    assert cross_entropy(student, HELDOUT) == pytest.approx(measures[result.kept_step], rel=1e-5)
    assert FinetuneSettings().keep == "last"


def test_out_of_patience_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models("random")
    rates = {"new_block_learning_rate": 0.3, "other_learning_rate": 0.1}
    result = run(student, teacher, steps=40, eval_steps=1, patience=2, divergence=None, **rates)
    values = [row["cross_entropy"] for row in result.evaluations[1:]]
    assert result.steps == values.index(min(values)) + 1 + 2 < 40
    printed = " ".join(capsys.readouterr().err.split())
    assert f"finetune: ended at step {result.steps} of 40, out of patience" in printed
    assert "distill" not in printed


def die() -> None:
    raise MemoryError


def interrupted(folder: Path, **fields: Any) -> tuple[DistillResult, dict[str, Tensor]]:
    """A run that dies in its fifth batch, by an error that nothing expects, and goes on."""
    teacher, student = models()
    before_batch(student, 5, die)
    with pytest.raises(MemoryError):
        run(student, teacher, folder=folder, **fields)
    teacher, student = models()
    return run(student, teacher, folder=folder, **fields), weights(student)


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    fields = {
        **RESUMABLE.model_dump(
            exclude={"loss", "cross_entropy", "hidden", "on_policy", "select", "teacher_store", "rate_search"}
        ),
        "steps": 4,
    }
    teacher, student = models()
    expected = run(student, teacher, **fields)
    found, found_weights = interrupted(tmp_path, **fields)
    assert lasting(found) == lasting(expected)
    assert all(torch.equal(tensor, found_weights[name]) for name, tensor in weights(student).items())
    assert steps_kept(tmp_path)[-1] == 4


def test_what_cannot_be_trained_is_refused_in_its_own_name(tmp_path: Path) -> None:
    teacher, student = models()
    with pytest.raises(RadistillError, match=r"finetune: nothing to train: .* are 0; set a rate above 0"):
        run(student, teacher, new_block_learning_rate=0, other_learning_rate=0)
    with pytest.raises(RadistillError, match="finetune: there are no documents in heldout"):
        run(student, teacher, heldout=[])
    store = store_of(teacher, tmp_path, STORED)
    with pytest.raises(RadistillError, match=r"finetune: the teacher is a stored one, .* the model itself; give it"):
        run(student, store, steps=1)
    with pytest.raises(RadistillError, match=r"finetune\.gradient_accumulation is 3, which 2 processes"):
        FinetuneSettings(gradient_accumulation=3).check_processes(2)
    with_lost_numbers(student)
    with pytest.raises(RadistillError, match="finetune: the loss is nan at step 1"):
        run(student, teacher, folder=tmp_path)
    assert (tmp_path / "failed_batch.json").exists()


@pytest.mark.parametrize("field", [{"loss": {"kind": "jsd"}}, {"cross_entropy": 0.5}, {"on_policy": {}}, {"steps": 0}])
def test_settings_that_would_do_nothing_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        FinetuneSettings.model_validate(field)


def test_long_documents_in_bfloat16() -> None:
    teacher, student = models("random")
    result = run(
        student, teacher, heldout=documents(2, "more", seed=3), precision="bfloat16", gradient_checkpointing=True
    )
    assert all(math.isfinite(row["loss"]) for row in result.curve)
