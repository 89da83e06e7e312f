"""How documents are grouped, and logits at the places that count."""

import pytest
import torch

import tiny
from radistill.models.divergence import forward_kl, kl_from
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, batches, collate


def documents(*lengths: int) -> list[Document]:
    return [Document(str(number), tuple(range(4, 4 + length)), 1) for number, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("tokens_per_batch", "most_padding", "lengths"),
    [
        (40, 1.0, [[2, 9, 10, 10], [11], [50]]),  # one that is too long gets a batch of its own
        (40, 0.3, [[2], [9, 10, 10], [11], [50]]),
        (40, 0.0, [[2], [9], [10, 10], [11], [50]]),
        (9, 1.0, [[2], [9], [10], [10], [11], [50]]),
    ],
)
def test_batches_are_of_similar_length(tokens_per_batch: int, most_padding: float, lengths: list[list[int]]) -> None:
    given = documents(10, 50, 2, 10, 9, 11)
    groups = batches(given, tokens_per_batch, most_padding)
    assert [[len(document.tokens) for document in group] for group in groups] == lengths
    for group in groups:
        tokens = [len(document.tokens) for document in group]
        padded = max(tokens) * len(tokens)
        assert len(group) == 1 or padded <= tokens_per_batch
        assert padded - sum(tokens) <= most_padding * padded


def test_gradients_flow_through_the_response_logits() -> None:
    model = tiny.model("llama")
    model.network.double()
    batch = collate([Document("a", tuple(range(5, 20)), 9), Document("b", tuple(range(30, 34)), 1)], 0)
    found = response_logits(model.network, batch)
    assert found.logits.shape[0] == 6 + 3
    found.logits.square().sum().backward()
    chosen = {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}
    model.network.zero_grad()
    full = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    full[:, :-1][batch.response_mask[:, 1:]].square().sum().backward()
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(chosen[name], parameter.grad)
    assert not model.network.get_output_embeddings()._forward_pre_hooks


def test_kl_from_log_probabilities_is_the_same_kl_also_in_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(7, 300, generator=generator) * 4 for _ in range(2))
    teacher[2, 5] = float("-inf")
    log_probabilities = torch.log_softmax(teacher, dim=-1)
    expected = forward_kl(teacher, student)
    assert torch.equal(kl_from(log_probabilities, student), expected)
    parts = [kl_from(a, b) for a, b in zip(log_probabilities.split(2), student.split(2), strict=True)]
    assert torch.equal(torch.cat(parts), expected)
