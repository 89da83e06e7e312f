"""A stored teacher: what is written and read, what a kill costs, and that training with it is as with the model."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_case
import pytest
import torch
from distill_case import HELDOUT, RESUMABLE, STORED, TRAIN, lasting, models, run, store_of, weights
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_distill_heldout import PAD, near

import tiny
from radistill.distillation.checks import Job
from radistill.distillation.distill import training_key
from radistill.distillation.heldout import distance
from radistill.distillation.settings import DistillSettings
from radistill.distillation.teacher_store import TeacherStoreSettings, read, store_teacher, write
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document

SHORTEST = Document("shortest", (5, 6), 1)
ALL = 260


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six shards instead of one."""
    monkeypatch.setattr(write, "SHARD_TOKENS", 60)
    monkeypatch.setattr(read, "SHARD_TOKENS", 60)


def stored_run(folder: Path, settings: DistillSettings, **arguments: Any) -> Any:
    teacher, student = models("random")
    store = store_of(teacher, folder, settings)
    del teacher
    return run(student, store, settings, **arguments), student


def quick(**fields: Any) -> DistillSettings:
    base = {"steps": 4, "tokens_per_batch": 100, "new_block_learning_rate": 1e-2, "eval_steps": 2, "report_to": "none"}
    return DistillSettings.model_validate({**base, **fields})


@torch.no_grad()
def test_each_response_token_has_the_distribution_of_a_plain_forward(tmp_path: Path) -> None:
    """Each document alone and unpadded, in another order than it was written in."""
    teacher = tiny.model("llama")
    documents = [*TRAIN, SHORTEST, *HELDOUT]
    store = store_teacher(teacher, documents, TeacherStoreSettings(top_k=5), vocabulary=250, folder=tmp_path)
    assert len(list(store.folder.glob("*.safetensors"))) > 5
    chosen = [HELDOUT[2], TRAIN[7], SHORTEST, TRAIN[0]]
    found = store.of(chosen)
    rows = []
    for document in chosen:
        logits = teacher.network(input_ids=torch.tensor([document.tokens])).logits[0]
        rows.append(logits[document.response_start - 1 : -1, :250].double())
    logs = torch.log_softmax(torch.cat(rows), dim=1)
    expected = logs.topk(5)
    assert found.ids.equal(expected.indices)
    torch.testing.assert_close(found.log_probabilities.double(), expected.values, rtol=2**-11, atol=1e-5)
    tail = logs.scatter(1, expected.indices, -math.inf).logsumexp(1)
    torch.testing.assert_close(found.tail.double(), tail, rtol=1e-5, atol=1e-5)
    assert found.best.equal(logs.argmax(dim=1))
    assert store.vocabulary == found.vocabulary == 250


def test_its_size_is_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tiny.model("llama")
    store = store_of(teacher, tmp_path, quick(teacher_store={"top_k": 64}))
    tokens = sum(len(document.tokens) - document.response_start for document in [*TRAIN, *HELDOUT])
    assert store.tokens == tokens
    assert store.bytes == tokens * (64 * 6 + 8)
    on_disk = sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))
    assert store.bytes < on_disk < store.bytes + 1000 * len(list(store.folder.iterdir()))
    assert f"top 64 of 260 for {tokens:,} response tokens, 392 bytes each" in capsys.readouterr().err


def test_equal_documents_are_read_once(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    again = replace(SHORTEST, id="again")
    store = store_teacher(teacher, [SHORTEST, again, SHORTEST], TeacherStoreSettings(), vocabulary=ALL, folder=tmp_path)
    assert store.tokens == 1
    assert store.of([again, SHORTEST]).ids.shape == (2, 64)


OTHER_LOSSES = [pytest.param({"kind": kind}, marks=pytest.mark.slow) for kind in ("forward-kl", "total-variation")]


@pytest.mark.parametrize("loss", [{"kind": "jsd"}, *OTHER_LOSSES])
def test_with_the_whole_vocabulary_training_is_that_with_the_model(loss: dict[str, Any], tmp_path: Path) -> None:
    fields = {"loss": loss, "cross_entropy": 0.2, "gradient_accumulation": 2}
    teacher, student = models("random")
    expected = run(student, teacher, quick(**fields))
    found, _ = stored_run(tmp_path, quick(**fields, teacher_store={"top_k": 10**6}))
    for name in ("loss", "gradient_norm"):
        # The log-probabilities are rounded to float16.
        assert [row[name] for row in found.curve] == pytest.approx([row[name] for row in expected.curve], rel=2e-3)
    for name in ("kl", "agreement", "cross_entropy"):
        assert [row[name] for row in found.evaluations] == pytest.approx(
            [row[name] for row in expected.evaluations], rel=2e-3
        )
    assert (found.heldout_kl, expected.heldout_kl) == ("top-k", "full")
    assert found.to_json()["heldout_kl"] == "top-k"


def test_a_store_teaches_in_bfloat16_too(tmp_path: Path) -> None:
    """Autocast on a CPU does not take the float16 that a store is written in."""
    expected, _ = stored_run(tmp_path, quick(teacher_store={"top_k": 32}))
    found, _ = stored_run(tmp_path, quick(teacher_store={"top_k": 32}, precision="bfloat16"))
    assert [row["loss"] for row in found.curve] == pytest.approx([row["loss"] for row in expected.curve], rel=0.05)
    assert [row["loss"] for row in found.curve] != [row["loss"] for row in expected.curve]


def test_a_few_tokens_teach_too(tmp_path: Path) -> None:
    settings = quick(
        steps=30,
        tokens_per_batch=400,
        new_block_learning_rate=3e-2,
        other_learning_rate=3e-3,
        teacher_store={"top_k": 32},
    )
    teacher, student = models()
    before = distance(teacher.network, student.network, TRAIN, PAD)
    store = store_of(teacher, tmp_path, settings)
    result = run(student, store, settings, heldout=TRAIN)
    after = distance(teacher.network, student.network, TRAIN, PAD)
    assert after.kl < 0.5 * before.kl
    assert result.evaluations[-1]["kl"] <= after.kl
    assert result.evaluations[-1]["agreement"] == pytest.approx(after.agreement)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
@pytest.mark.parametrize("top_k", [1, 16, ALL])
def test_the_held_out_measure_is_a_lower_bound_and_agreement_exact(
    top_k: int, tokens_per_batch: int, tmp_path: Path
) -> None:
    teacher = tiny.model("llama")
    student = near(tiny.build("llama"), 272)
    full = distance(teacher.network, student, HELDOUT, PAD)
    settings = TeacherStoreSettings(top_k=top_k)
    store = store_teacher(teacher, HELDOUT, settings, vocabulary=272, folder=tmp_path)
    found = distance(store.of, student, HELDOUT, PAD, tokens_per_batch)
    assert (found.tokens, found.agreement) == (full.tokens, full.agreement)
    assert found.student_nll == pytest.approx(full.student_nll)
    assert 0 < found.kl <= full.kl * (1 + 1e-3)
    if top_k == ALL:
        assert found.kl == pytest.approx(full.kl, rel=1e-3)
    else:
        assert found.kl < full.kl


# ---- killed, stale, damaged ----


def test_killed_while_it_writes_it_goes_on_with_the_shard_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, settings = tiny.model("llama"), quick(teacher_store={"top_k": 4})
    whole = store_of(teacher, tmp_path / "whole", settings)
    original, written = write.save_file, []

    def dying(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        original(tensors, path, metadata)
        written.append(path)
        if len(written) == 3:
            os.truncate(path, path.stat().st_size // 2)
            raise KeyboardInterrupt

    monkeypatch.setattr(write, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        store_of(teacher, tmp_path / "killed", settings)
    assert len(list((tmp_path / "killed").glob("store/*/*"))) == 2
    monkeypatch.setattr(write, "save_file", lambda *given: (written.append(given[1]), original(*given)))
    found = store_of(teacher, tmp_path / "killed", settings)
    shards = sorted(path.name for path in whole.folder.glob("*.safetensors"))
    assert len(written) == len(shards) + 1
    assert found.key == whole.key
    for name in shards:
        for key, tensor in load_file(whole.folder / name).items():
            assert torch.equal(load_file(found.folder / name)[key], tensor)
    written.clear()
    store_of(teacher, tmp_path / "killed", settings)
    assert not written


def test_a_shard_that_is_cut_is_written_again(tmp_path: Path) -> None:
    teacher, settings = tiny.model("llama"), quick(teacher_store={"top_k": 4})
    store = store_of(teacher, tmp_path, settings)
    expected = store.of(TRAIN).log_probabilities
    path = read.shard_path(store.folder, 1)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RadistillError, match=r"shard-00001.safetensors: cannot be read .*; remove it"):
        store.of(TRAIN)
    assert torch.equal(store_of(teacher, tmp_path, settings).of(TRAIN).log_probabilities, expected)
    path.unlink()
    with pytest.raises(RadistillError, match=r"shard-00001.safetensors: missing or damaged; remove .*store.json"):
        type(store)(store.folder, [*TRAIN, *HELDOUT])


def test_a_shard_with_another_number_is_written_again(tmp_path: Path) -> None:
    """One that could be right: the teacher's probability of a token is a little other than it was."""
    teacher, settings = tiny.model("llama"), quick(teacher_store={"top_k": 4})
    store = store_of(teacher, tmp_path, settings)
    path = read.shard_path(store.folder, 1)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    tensors["log_probabilities"][0, 0] *= 1.01
    save_file(tensors, path, said)
    with pytest.raises(RadistillError, match=r"shard-00001.safetensors: missing or damaged; remove .*store.json"):
        type(store)(store.folder, [*TRAIN, *HELDOUT])
    store_of(teacher, tmp_path, settings)
    assert path.read_bytes() == whole


def test_a_store_that_says_something_else_is_refused(tmp_path: Path) -> None:
    store = store_of(tiny.model("llama"), tmp_path, quick(teacher_store={"top_k": 4}))
    path, header = read.shard_path(store.folder, 0), store.folder / read.HEADER
    whole = load_file(path)
    for name, value in (("ids", -1), ("ids", 10**6), ("best", 10**6), ("tail", float("nan")), ("tail", 7.0)):
        changed = {**whole, name: whole[name].clone()}
        changed[name].view(-1)[0] = value
        save_file(changed, path)
        with pytest.raises(RadistillError, match="damaged; remove it to have it written again"):
            store.of(TRAIN)
    save_file({name: tensor[:-1] for name, tensor in whole.items()}, path)
    with pytest.raises(RadistillError, match=r"missing or damaged; remove it and store\.json"):
        type(store)(store.folder, [*TRAIN, *HELDOUT])
    save_file(whole, path)
    header.write_text(header.read_text().replace('"top_k": 4', '"top_k": 3'))
    with pytest.raises(RadistillError, match=r"store\.json: damaged; remove it to have it written again"):
        type(store)(store.folder, [*TRAIN, *HELDOUT])


def test_anything_else_is_another_store(tmp_path: Path) -> None:
    teacher, documents = tiny.model("llama"), [*TRAIN, *HELDOUT]
    settings = TeacherStoreSettings(top_k=4)
    moved = replace(TRAIN[0], response_start=TRAIN[0].response_start % (len(TRAIN[0].tokens) - 1) + 1)
    other: list[tuple[Model, list[Document], TeacherStoreSettings, int, Any]] = [
        (teacher, documents, settings, ALL, None),
        (tiny.model("llama", seed=1), documents, settings, ALL, None),
        (teacher, documents[1:], settings, ALL, None),
        (teacher, [moved, *documents[1:]], settings, ALL, None),
        (teacher, documents, TeacherStoreSettings(top_k=5), ALL, None),
        (teacher, documents, TeacherStoreSettings(top_k=4, tokens_per_batch=100), ALL, None),
        (teacher, documents, settings, 258, None),
        (teacher, documents, settings, ALL, "bfloat16"),
    ]
    stores = [
        store_teacher(model, texts, chosen, vocabulary=size, folder=tmp_path, precision=precision)
        for model, texts, chosen, size, precision in other
    ]
    assert len({store.folder for store in stores}) == len({store.key for store in stores}) == len(other)
    renamed = [replace(document, id=f"new {document.id}") for document in documents]
    same = store_teacher(teacher, renamed, settings, vocabulary=300, folder=tmp_path)
    assert same.key == stores[0].key
    with pytest.raises(RadistillError, match="the teacher store is of other documents; remove it"):
        type(same)(same.folder, documents[1:])
    _, student = models()
    keys = {training_key(Job(student, store, TRAIN, HELDOUT, RESUMABLE, ["a"])) for store in stores}
    assert len(keys) == len(other)


@pytest.mark.slow
def test_a_run_with_a_store_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Killed while shards are written and while it trains; the store is then all that is left of the teacher."""
    where = "shard:2,batch:9"
    command = [sys.executable, distill_case.__file__, str(tmp_path), "--stored", where]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert distill_case.steps_kept(tmp_path / where) == [3, 4]

    def outcome(folder: Path) -> tuple[Any, Any]:
        teacher, student = models()
        store = store_of(teacher, folder, STORED)
        with torch.no_grad():
            for parameter in teacher.network.parameters():
                parameter.fill_(math.nan)
        return lasting(run(student, store, STORED, folder=folder)), weights(student)

    found, expected = outcome(tmp_path / where), outcome(tmp_path / "alone")
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())


# ---- what is refused ----


def test_a_teacher_whose_logits_are_not_finite_is_refused(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    with torch.no_grad():
        teacher.network.get_input_embeddings().weight[250] = math.nan
    documents = [Document("sound", (1, 2, 3), 1), Document("poisoned", (1, 250, 3, 4), 1)]
    with pytest.raises(RadistillError, match=r"not finite on the documents poisoned; take these out"):
        store_teacher(teacher, documents, TeacherStoreSettings(tokens_per_batch=4), vocabulary=ALL, folder=tmp_path)
    assert not list(tmp_path.glob("*/store.json"))


def test_very_unlikely_is_not_impossible(tmp_path: Path) -> None:
    """A log-probability beyond float16."""
    teacher = tiny.model("llama")
    with torch.no_grad():
        teacher.network.lm_head.weight.mul_(1e6)
    store = store_teacher(teacher, HELDOUT, TeacherStoreSettings(top_k=ALL), vocabulary=ALL, folder=tmp_path)
    assert store.of(HELDOUT).log_probabilities.isfinite().all()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(RadistillError, match=r"cannot be written .*No space left.*teacher_store.folder"):
        store_of(tiny.model("llama"), tmp_path, quick(teacher_store={}))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    teacher, student = models()
    settings = quick(teacher_store={"top_k": 4})
    store = store_of(teacher, tmp_path, settings)

    def refused(match: str, chosen: DistillSettings, of: Any = store) -> None:
        with pytest.raises(RadistillError, match=match):
            run(student, of, chosen)

    refused("teacher_store is null, but the teacher is a stored one; give it a section", quick())
    refused("teacher_store is set, but the teacher is a model; give it what store_teacher", settings, teacher)
    refused("hidden needs the teacher's hidden states", quick(teacher_store={}, hidden={"kind": "mse"}))
    hot = quick(teacher_store={}, loss={"kind": "jsd", "temperature": 2.0})
    refused("temperature is 2, but distill.teacher_store keeps a sum", hot)
    refused("on_policy needs the teacher itself", quick(teacher_store={}, on_policy={}))
    other = tiny.tokenizer()
    other.add_tokens(["more"])
    stranger = Model(network=teacher.network, tokenizer=other, anatomy=teacher.anatomy, source="stranger")
    refused("the stored teacher has another tokenizer", settings, store_of(stranger, tmp_path, settings))


@pytest.mark.parametrize("field", [{"top_k": 0}, {"tokens_per_batch": 0}, {"folder": ""}, {"k": 3}])
def test_bad_settings_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        DistillSettings.model_validate({"teacher_store": field})


def test_header_says_what_it_is_of(tmp_path: Path) -> None:
    store = store_of(tiny.model("llama"), tmp_path, quick(teacher_store={"top_k": 4}))
    header = json.loads((store.folder / "store.json").read_text())
    assert (header["top_k"], header["vocabulary"], header["compute"]) == (4, 260, "None")
