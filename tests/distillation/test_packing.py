"""Documents in one row are read as each would be alone: logits, gradients, whole trainings; elsewhere they are padded.

The kernels are stand-ins, because real ones need a GPU; all else is what runs there.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import naive_kernels as kernels
import pytest
import torch
from distill_case import RESUMABLE, before_batch, lasting, models, run
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from radistill.conversion import convert, new_parameters
from radistill.distillation import packing as module
from radistill.distillation.packing import keeps_apart, packing
from radistill.mixers import use_fast_paths
from radistill.models import logits as logits_module
from radistill.models.logits import PACKS, response_logits
from radistill.models.sequences import Batch, Document, collate, packed

LENGTHS = (9, 2, 70, 33)  # one is longer than a chunk of a scan
FAMILIES = tiny.usual_first(
    ["llama", "qwen3", "student", "granitemoehybrid", "qwen3_5_text", "falcon_h1", "bamba", "qwen3_moe", "qwen3_next"]
)
Figures = tuple[Tensor, dict[str, Tensor]]


def documents() -> list[Document]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.randint(0, 256, (length,), generator=draw).tolist() for length in LENGTHS]
    starts = (1, 1, 40, 20)
    return [Document(str(index), tuple(made[index]), start) for index, start in enumerate(starts)]


def figures(network: PreTrainedModel, batches: list[Batch]) -> Figures:
    """Logits of the response tokens, [tokens, vocab], and the gradients of their cross-entropy."""
    network.zero_grad()
    found = []
    for batch in batches:
        told = response_logits(network, batch)
        torch.nn.functional.cross_entropy(told.logits, told.targets, reduction="sum").backward()
        found.append(told.logits.detach())
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    return torch.cat(found), gradients


def distance(found: Figures, expected: Figures) -> float:
    """The largest difference of logits or of a gradient, as a share of the largest number there."""
    assert found[1].keys() == expected[1].keys()
    pairs = [(found[0], expected[0]), *((found[1][name], tensor) for name, tensor in expected[1].items())]
    return max(((one - other).abs().max() / other.abs().max().clamp(min=1e-3)).item() for one, other in pairs)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, in one line."""
    return " ".join(capsys.readouterr().err.split())


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave out some of what says where documents begin."""

    def leaky(batch: Batch) -> Batch:
        whole = packed(batch)
        return whole._replace(arguments={name: told for name, told in whole.arguments.items() if name not in names})

    monkeypatch.setattr(logits_module, "packed", leaky)
    monkeypatch.setattr(module, "packed", leaky)


def prepared(monkeypatch: pytest.MonkeyPatch, family: str) -> tuple[Any, Figures]:
    """A model of the family with all kernels, in training mode, and its figures before that, one row a document."""
    model = convert(tiny.model("llama"), [1, 2], init="random") if family == "student" else tiny.model(family)
    model.network.train()
    expected = figures(model.network, [collate([document], 0) for document in documents()])
    kernels.install_flash(monkeypatch, model.network)
    kernels.install_recurrent(monkeypatch, model.network)
    return model, expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_is_one_row_a_document(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, expected = prepared(monkeypatch, family)
    lengths: list[int] = []
    model.network.get_input_embeddings().register_forward_pre_hook(lambda _, args: lengths.append(args[0].numel()))
    with packing(model, "test: the student"):
        lengths.clear()
        found = figures(model.network, [collate(documents(), 0)])
    assert lengths == [sum(LENGTHS)]  # no padding
    assert distance(found, expected) < 5e-4
    assert "test: the student reads the documents of a batch packed in one row" in said(capsys)
    assert PACKS not in vars(model.network)


LEAKS = {  # what is not said, by family
    "llama": ("position_ids", "cu_seq_lens_q"),  # of which either is enough for attention
    "granitemoehybrid": ("seq_idx",),
    "falcon_h1": ("position_ids", "cu_seq_lens_q"),
    "qwen3_5_text": ("seq_idx",),
    "qwen3_next": ("cu_seq_lens_q",),
}


@pytest.mark.parametrize("family", tiny.usual_first(LEAKS))
def test_without_the_bounds_documents_leak_and_that_is_noticed(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, expected = prepared(monkeypatch, family)
    without(monkeypatch, *LEAKS[family])
    vars(model.network)[PACKS] = True
    assert distance(figures(model.network, [collate(documents(), 0)]), expected) > 0.05
    del vars(model.network)[PACKS]
    with packing(model, "test"):
        assert PACKS not in vars(model.network)
    assert "a document is not read the same after another one" in said(capsys)


def test_blocks_that_say_nothing_yet_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    student = convert(tiny.model("llama"), [1, 2], init="zero")
    kernels.install_flash(monkeypatch, student.network)
    kernels.install_recurrent(monkeypatch, student.network, bounds=False)
    assert keeps_apart(student.network)  # nothing is seen of the old convolution
    assert not keeps_apart(student.network, new_parameters(student, [1, 2]))
    kernels.install_recurrent(monkeypatch, student.network)
    assert keeps_apart(student.network, new_parameters(student, [1, 2]))


@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_5_text", pytest.param("lfm2", marks=pytest.mark.slow)])
def test_where_kernels_are_missing_documents_are_padded(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.model(family)
    use_fast_paths(model.network)
    expected = figures(model.network, [collate(documents(), 0)])
    own = model.network.config._attn_implementation
    monkeypatch.setattr(module, "_flash_attention", lambda *_: "eager")  # a flash attention, but nothing else
    with packing(model, "test"):
        assert model.network.config._attn_implementation == own
        found = figures(model.network, [collate(documents(), 0)])
    assert distance(found, expected) == 0
    assert "test pads documents, as it cannot pack them" in said(capsys)


def test_without_a_flash_attention_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model("llama")
    with packing(model, "test"):
        assert PACKS not in vars(model.network)
    assert not capsys.readouterr().err


def test_flash_attention_is_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, weights: torch.dtype, compute: torch.dtype | None = None, own: str = "sdpa") -> str | None:
        config = SimpleNamespace(_attn_implementation=own)
        network: Any = SimpleNamespace(config=config, device=torch.device(device), dtype=weights)
        return module._flash_attention(network, compute)

    assert chosen("cuda", torch.bfloat16) is None  # none is installed
    monkeypatch.setattr(module, "is_flash_attn_3_available", lambda: True)
    assert chosen("cuda", torch.bfloat16) == chosen("cuda", torch.float32, torch.bfloat16) == "flash_attention_3"
    assert chosen("cuda", torch.float32) is None
    assert chosen("cpu", torch.bfloat16) is None
    assert chosen("cpu", torch.float32, own="kernels-community/flash-attn2") == "kernels-community/flash-attn2"


def test_a_training_goes_on_packed_where_it_was_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RESUMABLE.model_copy(update={"steps": 3, "eval_steps": 2, "gradient_checkpointing": True})
    teacher, student = models()
    expected = lasting(run(student, teacher, settings))
    teacher, student = models()

    def stop() -> None:
        raise ConnectionError

    before_batch(student, 5, stop)  # in the third step
    with pytest.raises(ConnectionError):
        run(student, teacher, settings, folder=tmp_path)
    teacher, student = models()
    for model in (teacher, student):
        kernels.install_flash(monkeypatch, model.network)
    kernels.install_recurrent(monkeypatch, student.network)
    capsys.readouterr()
    rows: list[int] = []
    student.network.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found = lasting(run(student, teacher, settings, folder=tmp_path))
    printed = said(capsys)
    assert "distill: going on after step 2 of 3" in printed
    assert printed.count("packed in one row") == 2  # student and teacher
    assert set(rows) == {1}
    assert found["curve"][:2] == expected["curve"][:2]
    for name in ("loss", "gradient_norm"):
        assert found["curve"][2][name] == pytest.approx(expected["curve"][2][name], rel=1e-4)
    assert found["evaluations"][-1] == pytest.approx(expected["evaluations"][-1], rel=1e-3)


def test_a_batch_with_images_stays_padded() -> None:
    network = tiny.build("llama")
    vars(network)[PACKS] = True
    batch = collate(documents(), 0)._replace(arguments={"pixel_values": torch.zeros(1)})
    assert logits_module._as_read(network, batch) is batch
    assert logits_module._as_read(network, batch._replace(arguments={})).input_ids.shape == (1, sum(LENGTHS))
