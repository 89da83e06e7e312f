"""Computing in bfloat16 with float32 weights, and computing layers twice to save memory."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import HELDOUT, REPLACED, RESUMABLE, TRAIN, before_batch, lasting, models, run, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from radistill.conversion import new_parameters
from radistill.distillation.distill import distill, finetune
from radistill.distillation.settings import DistillSettings, FinetuneSettings
from radistill.models.loading import Model

SHORT = RESUMABLE.model_copy(update={"steps": 4, "eval_steps": 2})
SMALL: dict[str, Any] = {
    "steps": 12,
    "tokens_per_batch": 110,
    "new_block_learning_rate": 3e-5,
    "warmup_ratio": 0.0,
    "scheduler": "constant_with_warmup",
    "keep": "last",
    "report_to": "none",
}
IN_BFLOAT16 = SHORT.model_copy(update={"precision": "bfloat16", "gradient_checkpointing": True})


def loaded_in_bfloat16() -> tuple[Model, Model]:
    teacher, student = models("random")
    for model in (teacher, student):
        model.network.to(torch.bfloat16)
    return teacher, student


def test_bfloat16_follows_float32() -> None:
    found = []
    for settings in (SHORT, SHORT.model_copy(update={"precision": "bfloat16"})):
        teacher, student = models("random")
        found.append(run(student, teacher, settings))
        assert {parameter.dtype for parameter in student.network.parameters()} == {torch.float32}
    exact, rounded = ([row["loss"] for row in result.curve] for result in found)
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != pytest.approx(exact, rel=1e-5)  # it was not float32 after all
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("other_learning_rate", [0.0, 1e-3])
def test_weights_loaded_in_bfloat16_are_trained_in_float32(other_learning_rate: float, tmp_path: Path) -> None:
    teacher, student = loaded_in_bfloat16()
    settings = IN_BFLOAT16.model_copy(update={"other_learning_rate": other_learning_rate, "keep": "last"})
    run(student, teacher, settings, folder=tmp_path)
    trained = load_file(next(tmp_path.glob("checkpoints/*/checkpoint-4/trainable.safetensors")))
    assert len(trained) == (len(weights(student)) if other_learning_rate else len(new_parameters(student, REPLACED)))
    out = weights(student)
    for name, tensor in trained.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(out[name], tensor.bfloat16())
    assert any(not torch.equal(out[name].float(), tensor) for name, tensor in trained.items())
    assert {tensor.dtype for tensor in [*out.values(), *weights(teacher).values()]} == {torch.bfloat16}


@pytest.mark.parametrize("section", ["distill", pytest.param("finetune", marks=pytest.mark.slow)])
def test_a_small_update_arrives_unless_weights_are_trained_as_they_are(section: str, tmp_path: Path) -> None:
    """Weights of 1/16 to 1/8, which in bfloat16 are 2^-11 apart: at a rate of 3e-5 a step is a sixteenth of that."""
    kind, train = (DistillSettings, distill) if section == "distill" else (FinetuneSettings, finetune)
    for precision in (None, "weights"):
        teacher, student = loaded_in_bfloat16()
        new, before = new_parameters(student, REPLACED), weights(student)
        settings = kind.model_validate({**SMALL, "precision": precision})
        folder = tmp_path / str(precision)
        train(student, teacher, TRAIN, HELDOUT, settings, new_parameters=new, folder=folder)
        trained = load_file(next(folder.glob("checkpoints/*/checkpoint-12/trainable.safetensors")))
        assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16 if precision else torch.float32}
        chosen = {name: before[name].abs().gt(1 / 16) & before[name].abs().lt(1 / 8) for name in trained}
        start, end, out = (
            torch.cat([found[name][mask].float() for name, mask in chosen.items()])
            for found in (before, trained, weights(student))
        )
        assert len(start) > 500
        if precision is None:
            assert (end != start).float().mean() > 0.99
            beyond_rounding = (end - start).abs() > 2**-12
            assert torch.equal(out != start, beyond_rounding)
            assert beyond_rounding.float().mean() > 0.03
        else:
            assert torch.equal(end, start)
            assert torch.equal(out, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_weights_in_half_precision_are_computed_in_their_own_format(dtype: torch.dtype) -> None:
    """And near to float32, from the same rounded weights."""
    losses = []
    for computed in (dtype, torch.float32):
        teacher, student = models("random")
        for model in (teacher, student):
            model.network.to(dtype).to(computed)
        losses.append([row["loss"] for row in run(student, teacher, SHORT).curve])
        assert {parameter.dtype for parameter in student.network.parameters()} == {computed}
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_interrupted_in_bfloat16_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def outcome(
        settings: DistillSettings, folder: Path | None, stop: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        teacher, student = loaded_in_bfloat16()
        if stop:  # in the third step
            before_batch(student, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        return lasting(run(student, teacher, settings, folder=folder)), weights(student)

    expected = outcome(IN_BFLOAT16, None)
    with pytest.raises(KeyboardInterrupt):
        outcome(IN_BFLOAT16, tmp_path, stop=True)
    found = outcome(IN_BFLOAT16, tmp_path)
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())


def test_checkpointing_computes_layers_twice_and_changes_nothing_else() -> None:
    results, forwards = [], []
    for wanted in (False, True):
        teacher, student = models("random")
        calls: list[nn.Module] = []
        layer = student.anatomy.layers(student.network)[0]
        inner = student.anatomy.mixer(student.network, 0)
        inner.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(module))
        results.append(lasting(run(student, teacher, SHORT.model_copy(update={"gradient_checkpointing": wanted}))))
        forwards.append(len(calls))
        assert not getattr(layer, "gradient_checkpointing", False)
    assert results[1] == results[0]
    assert forwards[1] - forwards[0] == SHORT.steps * SHORT.gradient_accumulation
