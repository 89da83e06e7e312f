"""Token sequences that the models run on, and how they are batched.

One document is one row, padded on the right. Rows never share attention or a recurrent state, so no document can leak
into another, whatever the layers are made of; sorting by length keeps the padding small. A network that can tell where
documents begin may read them in one row instead: `packed`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from radistill.files import hash_json
from radistill.models.pictures import Images


@dataclass(frozen=True)
class Document:
    """One tokenised conversation or text.

    Attributes:
        id: name of the example, unique in its data set.
        tokens: prompt and response, in order.
        response_start: index of the first response token; losses and measures count only tokens from there on.
        images: what its image tokens stand for, none of which is in the response; None if it has no images.
    """

    id: str
    tokens: tuple[int, ...]
    response_start: int
    images: Images | None = None

    def __post_init__(self) -> None:
        if not 0 < self.response_start < len(self.tokens):
            raise ValueError(
                f"document {self.id}: response_start {self.response_start} is not within 1 to {len(self.tokens) - 1}"
            )
        if self.images is not None and self.images.reader.token in self.tokens[self.response_start :]:
            raise ValueError(f"document {self.id}: its response has the image token")

    @property
    def response_tokens(self) -> int:
        """How many tokens the response has."""
        return len(self.tokens) - self.response_start

    @property
    def content(self) -> tuple[Any, ...]:
        """What results depend on: the tokens, where the response starts, and images. The id, perhaps a path, is not."""
        return self.tokens, self.response_start, *([] if self.images is None else [self.images.content])

    def to_json(self) -> dict[str, Any]:
        """Plain data: the tokens, and what images are called."""
        shown = {} if self.images is None else {"images": [picture.name for picture in self.images.pictures]}
        return {"id": self.id, "tokens": self.tokens, "response_start": self.response_start, **shown}

    @property
    def blind(self) -> "Document":
        """What a model that reads no images is given of it: the text without the image tokens."""
        if self.images is None:
            return self
        prompt = without_images(self.tokens[: self.response_start], self.images)
        return replace(
            self, tokens=(*prompt, *self.tokens[self.response_start :]), response_start=len(prompt), images=None
        )


def without_images(tokens: Sequence[int], images: Images | None) -> list[int]:
    """The tokens of a prompt that are not the places of images."""
    return [token for token in tokens if images is None or token != images.reader.token]


def hash_documents(documents: Iterable[Document]) -> str:
    """SHA-256 over the contents of documents, in order."""
    return hash_json([document.content for document in documents])


class Batch(NamedTuple):
    """Documents padded on the right to one length.

    Attributes:
        input_ids: [batch, time], long.
        attention_mask: [batch, time], long; 1 at tokens, 0 at padding.
        response_mask: [batch, time], bool; True at tokens that belong to a response.
        arguments: what the network is given besides, by the names of its arguments: of images, or where in a row
            documents begin.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    arguments: Mapping[str, Any] = {}

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.response_mask.to(device),
            {name: tensor.to(device) for name, tensor in self.arguments.items()},
        )


def collate(documents: Sequence[Document], pad_token_id: int, device: torch.device | str = "cpu") -> Batch:
    """Pad documents on the right to the longest of them."""
    rows = [torch.tensor(document.tokens) for document in documents]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    starts = torch.tensor([document.response_start for document in documents])
    response_mask = attention_mask.bool() & (torch.arange(input_ids.shape[1]) >= starts[:, None])
    images = image_arguments([document.images for document in documents], input_ids, device)
    return Batch(input_ids, attention_mask, response_mask, images).to(device)


def packed(batch: Batch) -> Batch:
    """The documents of a padded batch in one row, [1, tokens], one after the other and without padding.

    Where each begins is said as transformers' networks ask for it: positions that begin anew (rotary), bounds (flash
    attention, the gated delta rule) and the document of each token (convolutions, Mamba-2's scan).
    """
    real = batch.attention_mask.bool()
    documents, positions = real.nonzero(as_tuple=True)
    bounds = pad(real.sum(dim=1).cumsum(dim=0), (1, 0)).int()
    longest = real.shape[1]
    arguments = {
        "position_ids": positions[None],
        "seq_idx": documents[None].int(),
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }
    tokens, mask, responses = (tensor[documents, positions][None] for tensor in batch[:3])
    return Batch(tokens, mask, responses, arguments)


def image_arguments(
    images: Sequence[Images | None], input_ids: Tensor, device: torch.device | str
) -> dict[str, Tensor]:
    """What a network on a device is given of the images of a batch, [batch, time], beside its tokens.

    Rows may have none.
    """
    shown = [one for one in images if one is not None]
    found = shown[0].reader.arguments([one.pictures for one in shown], input_ids) if shown else {}
    return {name: tensor.to(device) for name, tensor in found.items()}


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


def batch_order(groups: int, batches_needed: int, seed: int) -> list[int]:
    """Indices of `groups` batches: every one once an epoch, shuffled anew each time, cut at `batches_needed`."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(batches_needed / groups)
    order = [index for _ in range(epochs) for index in torch.randperm(groups, generator=generator).tolist()]
    return order[:batches_needed]
