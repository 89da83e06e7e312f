"""What can draft for a target: the target itself without some of its components, or another model.

Both are a network that is run under a mask, and an empty mask skips nothing; so decoding and prediction know one kind
of drafter. The target alone decides what is text: a drafter can make decoding slow, never wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.pictures import Images
from radistill.models.sequences import Document, collate, without_images
from radistill.models.vocabularies import check_same_tokenizer
from radistill.speculation.masks import ComponentMask, masked

Drafter = ComponentMask | Model
"""What the target skips when it drafts for itself, or another model with the target's tokenizer."""


@dataclass(frozen=True)
class Draft:
    """A network that proposes tokens of a target.

    Attributes:
        target: what verifies them.
        model: its network reads and proposes; it may be the target.
        mask: what it skips.
    """

    target: Model
    model: Model
    mask: ComponentMask

    @classmethod
    def of(cls, target: Model, drafter: Drafter) -> "Draft":
        """What `drafter` is to a target.

        Raises:
            RadistillError: if it is a model with another tokenizer, or makes other tokens of an image.
        """
        if isinstance(drafter, ComponentMask):
            return cls(target, target, drafter)
        check_same_tokenizer(drafter, target, ("drafter", "target"))
        check_same_reader(drafter, target)
        return cls(target, drafter, ComponentMask())

    @property
    def blind(self) -> bool:
        """Whether it drafts without the images that the target sees: it reads the text without their tokens."""
        return self.model.reader is None

    def prompt(self, tokens: Sequence[int], images: Images | None) -> tuple[list[int], Images | None]:
        """A prompt of the target as the drafter reads it."""
        return (without_images(tokens, images), None) if self.blind else (list(tokens), images)

    def fit(self, logits: Tensor) -> Tensor:
        """Logits [..., vocab of the drafter] as [..., vocab of the target], where the target is."""
        return fitted(logits.to(self.target.network.device), self.target.anatomy.vocab_size)

    @torch.inference_mode()
    def response_logits(self, document: Document) -> Tensor:
        """One teacher-forced pass: [tokens, vocab of the target], what the drafter expects before each response token.

        These are the logits that it drafts with, as long as it has a cache of its own.
        """
        batch = collate(
            [document.blind if self.blind else document], self.model.pad_token_id, self.model.network.device
        )
        batch = batch._replace(input_ids=known_tokens(self.model, batch.input_ids))
        with masked(self.model, self.mask):
            return self.fit(response_logits(self.model.network, batch).logits)


def fitted(logits: Tensor, vocab_size: int) -> Tensor:
    """A drafter's logits [..., its vocab] as [..., vocab_size of the target]: embeddings are padded to different sizes.

    Entries that only the drafter has are cut off before the softmax; those that only the target has are -inf, so that
    their probability is 0 and they are never proposed.
    """
    missing = vocab_size - logits.shape[-1]
    return nn.functional.pad(logits, (0, missing), value=float("-inf")) if missing else logits


def check_same_reader(other: Model, own: Model, roles: tuple[str, str] = ("drafter", "target")) -> None:
    """Refuse a model that reads images in another way than `own`: both are given the same tokens and tensors."""
    if other.reader is None or own.reader is None or other.reader.signature == own.reader.signature:
        return
    raise RadistillError(
        f"{roles[0]} {other.source} makes other tokens or tensors of an image than the {roles[1]} {own.source}; give "
        "it the same processor"
    )


def known_tokens(model: Model, tokens: Tensor) -> Tensor:
    """`tokens` as a network can read them, where it is: those beyond its vocabulary become padding tokens.

    A target with a larger, padded embedding may write such a token; what the drafter then proposes is judged as ever.
    """
    return tokens.masked_fill(tokens >= model.anatomy.vocab_size, model.pad_token_id).to(model.network.device)
