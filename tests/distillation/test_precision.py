"""Computing in bfloat16 with float32 weights, and computing layers twice to save memory."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import REPLACED, RESUMABLE, lasting, models, run, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from radistill.conversion import new_parameters
from radistill.distillation import loop
from radistill.distillation.settings import DistillSettings
from radistill.models.loading import Model

SHORT = RESUMABLE.model_copy(update={"steps": 4, "eval_steps": 2})
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


def test_interrupted_in_bfloat16_it_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(settings: DistillSettings, folder: Path | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        teacher, student = loaded_in_bfloat16()
        return lasting(run(student, teacher, settings, folder=folder)), weights(student)

    expected = outcome(IN_BFLOAT16, None)
    original, calls = loop.chunked_sum, []

    def interrupting(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:  # in the third step
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(loop, "chunked_sum", interrupting)
    with pytest.raises(KeyboardInterrupt):
        outcome(IN_BFLOAT16, tmp_path)
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
