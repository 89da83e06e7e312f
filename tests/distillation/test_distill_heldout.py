"""The held-out measure against a loop over documents and tokens, in float64."""

import math

import pytest
import torch
from distill_case import HELDOUT
from test_losses import log_softmax, naive_forward_kl
from transformers import PreTrainedModel

import tiny
from radistill.distillation.heldout import distance
from radistill.errors import RadistillError
from radistill.models import logits
from radistill.models.sequences import Document

PAD = 256


@torch.no_grad()
def near(network: PreTrainedModel, vocabulary: int) -> PreTrainedModel:
    """The network, a little wrong, with random rows added to its embeddings."""
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    network.resize_token_embeddings(vocabulary, mean_resizing=False)
    return network


@torch.no_grad()
def naive(teacher: PreTrainedModel, student: PreTrainedModel, documents: list[Document]) -> dict[str, float]:
    """Each document alone, unpadded, with all its logits; the means over all response tokens."""
    kl, agreed, accepted, nll = [], [], [], []
    for document in documents:
        ids = torch.tensor([document.tokens])
        logits = {"student": student(input_ids=ids).logits[0], "teacher": teacher(input_ids=ids).logits[0]}
        size = min(part.shape[1] for part in logits.values())
        for position in range(document.response_start, len(document.tokens)):
            row = {name: part[position - 1, :size] for name, part in logits.items()}
            kl += naive_forward_kl(row["teacher"][None], row["student"][None])
            agreed.append(row["teacher"].argmax() == row["student"].argmax())
            p, q = (torch.softmax(row[name].double(), dim=0).tolist() for name in ("teacher", "student"))
            accepted.append(sum(map(min, p, q)))
            nll.append(-log_softmax(row["student"].tolist(), 1.0)[document.tokens[position]])
    count = len(kl)
    return {
        "tokens": count,
        "kl": sum(kl) / count,
        "agreement": sum(map(bool, agreed)) / count,
        "sampled_acceptance": sum(accepted) / count,
        "student_nll": sum(nll) / count,
    }


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
@pytest.mark.parametrize("padded", [260, 272])
def test_equals_a_plain_loop(tokens_per_batch: int, padded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_NUMBERS", 7 * 260)  # so that chunks end inside batches
    teacher, student = tiny.build("llama"), near(tiny.build("llama"), padded)
    documents = [*HELDOUT, Document("shortest", (5, 6), 1)]
    found = distance(teacher, student, documents, PAD, tokens_per_batch)
    expected = naive(teacher, student, documents)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found.kl > 0.01  # the two differ, so that a wrong mask would show
    assert 0 < expected["agreement"] < 1


def test_a_model_agrees_with_itself() -> None:
    network = tiny.build("llama")
    found = distance(network, network, HELDOUT, PAD)
    assert (found.kl, found.agreement) == (0.0, 1.0)
    assert found.sampled_acceptance == pytest.approx(1, abs=1e-6)


def test_networks_are_left_as_they_were() -> None:
    teacher, student = tiny.build("llama").eval(), tiny.build("llama", attention_dropout=0.5, seed=1).train()
    assert distance(teacher, student, HELDOUT, PAD) == distance(teacher, student, HELDOUT, PAD)  # no dropout in it
    assert student.training
    assert not teacher.training
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("poisoned", ["teacher", "student"])
def test_nan_is_an_error_that_names_the_document(poisoned: str) -> None:
    networks = {"teacher": tiny.build("llama"), "student": tiny.build("llama", seed=1)}
    with torch.no_grad():
        networks[poisoned].get_input_embeddings().weight[250] = math.nan
    documents = [Document("sound", (1, 2, 3), 1), Document("poisoned", (1, 250, 3, 4), 1)]
    with pytest.raises(RadistillError, match=r"not finite on the documents poisoned$"):
        distance(networks["teacher"], networks["student"], documents, PAD, tokens_per_batch=4)


def test_no_documents_are_an_error() -> None:
    network = tiny.build("llama")
    with pytest.raises(RadistillError, match="no documents"):
        distance(network, network, [], PAD)
