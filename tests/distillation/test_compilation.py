"""torch.compile: the same training, names and modules, and a clear word where it cannot work."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_case import OWN, models, run
from safetensors.torch import load_file
from test_distill import with_

from radistill.distillation import checks, distill, modes
from radistill.distillation.modes import check_compiler, compiled
from radistill.distillation.on_policy import OnPolicy
from radistill.errors import RadistillError
from radistill.models.sequences import Document
from radistill.processes import Processes


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_it_trains_as_without(gradient_checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several lengths, a checkpoint, and the same names in it. Traced as by the default
    backend, whose code takes minutes to compile, but run as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for wanted in (False, True):
        teacher, student = models("random")
        names = list(student.network.state_dict())
        settings = with_(
            steps=2, compile=wanted, gradient_checkpointing=gradient_checkpointing, report_to="none", save_seconds=0
        )
        folder = tmp_path / str(wanted)
        found.append(run(student, teacher, settings, folder=folder))
        (kept,) = folder.glob("checkpoints/*/checkpoint-2")
        assert set(load_file(kept / "trainable.safetensors")) <= set(names)
        assert list(student.network.state_dict()) == names
        for model in (teacher, student):
            assert all(module._compiled_call_impl is None for module in model.network.modules())
    for figure in ("loss", "gradient_norm"):
        plain, fast = ([row[figure] for row in result.curve] for result in found)
        assert fast == pytest.approx(plain, rel=1e-4)


def test_layers_are_compiled_but_no_state_space_block() -> None:
    _, student = models()
    layers = student.anatomy.layers(student.network)
    with compiled(student.network, student.anatomy, True):
        assert [layer._compiled_call_impl is not None for layer in layers] == [True, False, False, True]
        for layer in (1, 2):
            inside = {name for name, part in layers[layer].named_modules() if part._compiled_call_impl is not None}
            assert inside == {"shared_mlp"}
    assert all(part._compiled_call_impl is None for part in student.network.modules())


@pytest.mark.slow
def test_what_the_student_writes_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state of a cache would be a case of its own."""
    original, writing, traced = OnPolicy.write, [], []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        traced.append(bool(writing))
        return module

    def write(self: OnPolicy, *arguments: Any) -> list[Document]:
        writing.append(self)
        written = original(self, *arguments)
        writing.clear()
        return written

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(OnPolicy, "write", write)
    torch.compiler.reset()
    found = []
    for wanted in (False, True):
        teacher, student = models("random")
        found.append(run(student, teacher, OWN.model_copy(update={"steps": 3, "compile": wanted})))
    assert traced
    assert not any(traced)
    plain, fast = ([row["loss"] for row in result.curve] for result in found)
    assert fast == pytest.approx(plain, rel=1e-4)
    assert found[1].curve[-1]["on_policy"] > 0


@pytest.mark.parametrize("said", ["No working C++ compiler found\nin: g++", ""])
def test_without_a_compiler_it_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: object) -> object:
        raise RuntimeError(said)

    monkeypatch.setattr(modes.torch, "compile", failing)
    reason = said.partition("\n")[0].replace("+", r"\+") or "RuntimeError"
    with pytest.raises(RadistillError, match=rf"compile is true, .* cpu here \({reason}\); install a C\+\+ compiler"):
        check_compiler(torch.device("cpu"), "distill")


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = models()
    monkeypatch.setattr(checks, "check_compiler", lambda device, section: None)
    monkeypatch.setattr(distill, "join", lambda kind: Processes(count=1, sharded=True))
    with pytest.raises(RadistillError, match=r"compile is true, .* FSDP2; set it to false"):
        run(student, teacher, with_(compile=True))
