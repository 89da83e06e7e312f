"""A stored teacher that a server fills: what is in it is what the teacher's own pass would have left."""

import math
from pathlib import Path

import pytest
import torch
from distill_case import HELDOUT, TRAIN

import tiny
from fake_server import Fake, serving, vllm_stands_in
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, read, store_teacher, write
from radistill.errors import RadistillError
from radistill.models.loading import Model, load
from radistill.models.sequences import Document

DOCUMENTS = [*TRAIN[:6], Document("shortest", (5, 6), 1), *HELDOUT[:2]]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "SHARD_TOKENS", 60)
    monkeypatch.setattr(read, "SHARD_TOKENS", 60)


def served(fake: Fake, folder: Path, top_k: int, vocabulary: int = tiny.VOCAB_SIZE) -> StoredTeacher:
    """The store that a teacher without weights leaves."""
    without = Model(tiny.build("llama").to("meta"), fake.model.tokenizer, fake.model.anatomy, "elsewhere")
    settings = TeacherStoreSettings(top_k=top_k, server={"url": fake.address, "retries": 0, "requests": 3})
    return store_teacher(without, DOCUMENTS, settings, vocabulary=vocabulary, folder=folder)


@pytest.mark.parametrize("top_k", [1, 5, tiny.VOCAB_SIZE])
def test_it_has_what_the_teacher_itself_would_have_left(top_k: int, tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    expected = store_teacher(
        teacher, DOCUMENTS, TeacherStoreSettings(top_k=top_k), vocabulary=tiny.VOCAB_SIZE, folder=tmp_path / "here"
    ).of(DOCUMENTS)
    with serving(Fake(teacher, most_logprobs=tiny.VOCAB_SIZE)) as fake:
        store = served(fake, tmp_path / "served", top_k)
        again = served(fake, tmp_path / "served", top_k)
        assert fake.texts == len(DOCUMENTS)
    assert again.key == store.key
    found = store.of(DOCUMENTS)
    assert found.best.equal(expected.best)
    tokens, vocabulary = found.shape
    tables = [
        torch.full((tokens, vocabulary), -99.0).scatter(1, part.ids, part.log_probabilities)
        for part in (found, expected)
    ]
    torch.testing.assert_close(*tables, rtol=2**-10, atol=1e-5)
    # The rest is a difference to 1, of which float32 knows seven digits.
    torch.testing.assert_close(found.tail.exp(), expected.tail.exp(), rtol=1e-4, atol=1e-6)
    assert bool((found.tail == -math.inf).all()) == (top_k == tiny.VOCAB_SIZE)


def test_vllm_is_started_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = vllm_stands_in(monkeypatch)
    teacher = load(tiny.save("llama", tmp_path / "model"))
    stores = [
        store_teacher(
            teacher,
            DOCUMENTS,
            TeacherStoreSettings(top_k=30, server=server),
            vocabulary=tiny.VOCAB_SIZE,
            folder=tmp_path / "stores",
        ).of(DOCUMENTS)
        for server in (None, {"url": "vllm"}, {"url": "vllm"})
    ]
    assert [fake.texts for fake in started] == [len(DOCUMENTS)]
    assert stores[0].best.equal(stores[1].best)
    torch.testing.assert_close(stores[1].log_probabilities, stores[0].log_probabilities, rtol=2**-10, atol=1e-3)


def test_ruled_out_is_ruled_out_and_unlikely_is_not(tmp_path: Path) -> None:
    """JSON has no infinity; and where nothing seems to be left for the rest, a little is."""
    teacher = tiny.model("llama")
    with torch.no_grad():
        teacher.network.lm_head.weight.mul_(1e4)
    with serving(Fake(teacher, most_logprobs=tiny.VOCAB_SIZE)) as fake:
        found = served(fake, tmp_path, 2).of(DOCUMENTS)
        whole = served(fake, tmp_path, tiny.VOCAB_SIZE).of(DOCUMENTS)
    assert found.tail.isfinite().all()
    assert found.tail.min().exp().item() == pytest.approx(2**-24)
    assert whole.log_probabilities.isinf().any()


def test_a_server_that_dies_loses_no_shard(tmp_path: Path) -> None:
    with serving(Fake(dies_after=6)) as fake, pytest.raises(RadistillError, match="cannot be reached"):
        served(fake, tmp_path / "killed", 4)
    left = len(list((tmp_path / "killed").glob("*/*.safetensors")))
    assert left > 0
    with serving(Fake()) as fake:
        found = served(fake, tmp_path / "killed", 4)
        assert fake.texts < len(DOCUMENTS)
        expected = served(fake, tmp_path / "whole", 4)
    for path in expected.folder.iterdir():
        assert (found.folder / path.name).read_bytes() == path.read_bytes()


def test_what_a_server_does_not_tell(tmp_path: Path) -> None:
    with (
        serving(Fake()) as fake,
        pytest.raises(RadistillError, match=r"\(400: Requested prompt logprobs of 21, .* max allowed: 20"),
    ):
        served(fake, tmp_path, 21)
    with serving(Fake(kind="llama.cpp")) as fake, pytest.raises(RadistillError, match="tells no prompt_logprobs"):
        served(fake, tmp_path, 4)
    with (
        serving(Fake(most_logprobs=260)) as fake,
        pytest.raises(RadistillError, match="tells fewer than 200 tokens that both models have; lower distill"),
    ):
        served(fake, tmp_path, 200, vocabulary=200)
    assert not list(tmp_path.glob("*/store.json"))
