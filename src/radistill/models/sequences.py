"""Token sequences that the models run on, and how they are batched.

One document is one row, padded on the right. Rows never share attention or a recurrent state, so no document can leak
into another, whatever the layers are made of; sorting by length keeps the padding small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from radistill.files import hash_json


@dataclass(frozen=True)
class Document:
    """One tokenised conversation or text.

    Attributes:
        id: name of the example, unique in its data set.
        tokens: prompt and response, in order.
        response_start: index of the first response token; losses and measures count only tokens from there on.
    """

    id: str
    tokens: tuple[int, ...]
    response_start: int

    def __post_init__(self) -> None:
        if not 0 < self.response_start < len(self.tokens):
            raise ValueError(
                f"document {self.id}: response_start {self.response_start} is not within 1 to {len(self.tokens) - 1}"
            )

    @property
    def content(self) -> tuple[tuple[int, ...], int]:
        """What results depend on: the tokens and where the response starts. The id, which may be a path, is not."""
        return self.tokens, self.response_start


def hash_documents(documents: Iterable[Document]) -> str:
    """SHA-256 over the contents of documents, in order."""
    return hash_json([document.content for document in documents])


class Batch(NamedTuple):
    """Documents padded on the right to one length.

    Attributes:
        input_ids: [batch, time], long.
        attention_mask: [batch, time], long; 1 at tokens, 0 at padding.
        response_mask: [batch, time], bool; True at tokens that belong to a response.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def collate(documents: Sequence[Document], pad_token_id: int, device: torch.device | str = "cpu") -> Batch:
    """Pad documents on the right to the longest of them."""
    time = max(len(document.tokens) for document in documents)
    input_ids = torch.full((len(documents), time), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(documents), time), dtype=torch.long)
    response_mask = torch.zeros((len(documents), time), dtype=torch.bool)
    for row, document in enumerate(documents):
        length = len(document.tokens)
        input_ids[row, :length] = torch.tensor(document.tokens)
        attention_mask[row, :length] = 1
        response_mask[row, document.response_start : length] = True
    return Batch(input_ids.to(device), attention_mask.to(device), response_mask.to(device))


def batches(
    documents: Iterable[Document], tokens_per_batch: int, most_padding: float = 1.0, max_new_tokens: int = 0
) -> list[list[Document]]:
    """Group documents of similar length so that no batch exceeds `tokens_per_batch` padded tokens.

    A document longer than the limit gets a batch of its own. The order is a function of the documents alone.

    Args:
        documents: in any order.
        tokens_per_batch: padded tokens in one batch.
        most_padding: largest share of a batch that is padding; 0.0 groups only documents of equal length.
        max_new_tokens: the batch has room for other responses than the documents' too, of so many tokens.
    """

    def room(document: Document) -> int:
        return max(len(document.tokens), document.response_start + max_new_tokens)

    groups: list[list[Document]] = []
    tokens = 0  # of the last group, without padding
    for document in sorted(documents, key=lambda d: (room(d), d.id)):
        length = room(document)
        padded = (len(groups[-1]) + 1) * length if groups else 0
        if groups and padded <= tokens_per_batch and padded - tokens - length <= most_padding * padded:
            groups[-1].append(document)
            tokens += length
        else:
            groups.append([document])
            tokens = length
    return groups
