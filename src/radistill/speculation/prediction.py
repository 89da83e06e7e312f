"""What decoding will accept, from one teacher-forced pass: the claim that diagnosis rests on, as a function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from radistill.models.loading import Model
from radistill.models.pictures import Images
from radistill.models.sequences import Document, image_arguments
from radistill.speculation.acceptance import confidences, likeliest_is, rounds_of
from radistill.speculation.drafters import Draft, Drafter


class Parting(NamedTuple):
    """Where two responses part.

    Attributes:
        position: index of the first token that differs.
        margin: difference of the model's two largest logits there; rounding decides where it is tiny.
    """

    position: int
    margin: float


@torch.inference_mode()
def predict_rounds(
    model: Model,
    document: Document,
    drafter: Drafter,
    draft_lengths: Sequence[int],
    *,
    confidence: float | None = None,
) -> dict[int, list[int]]:
    """Accepted tokens in each round of greedy decoding with a separate draft cache, without decoding.

    Args:
        model: the target.
        document: a prompt and the target's own greedy response.
        drafter: a mask, with which the target drafts for itself, or another model.
        draft_lengths: tokens drafted in a round.
        confidence: as in `speculative_generate`.

    Returns:
        By draft length, what `Decoded.accepted_by_round` will be.

    Raises:
        RadistillError: if the drafter has another tokenizer.
    """
    logits = Draft.of(model, drafter).response_logits(document)
    agreement = likeliest_is(logits, logits.new_tensor(document.tokens[document.response_start :], dtype=torch.long))
    unsure = None if confidence is None else (confidences(logits) < confidence).tolist()
    return {length: rounds_of(agreement.tolist(), length, unsure) for length in draft_lengths}


@torch.inference_mode()
def find_parting(
    model: Model,
    prompt: Sequence[int],
    one: Sequence[int],
    other: Sequence[int],
    images: Images | None = None,
) -> Parting | None:
    """The first token in which two responses of a model to a prompt, perhaps with images, differ, or None."""
    if list(one) == list(other):
        return None
    both = min(len(one), len(other))
    position = next((index for index in range(both) if one[index] != other[index]), both)
    text = torch.tensor([[*prompt, *one[:position]]], device=model.network.device)
    shown = image_arguments([images], text, text.device)
    largest = model.network(input_ids=text, use_cache=False, **shown).logits[0, -1].float().topk(2).values
    return Parting(position, (largest[0] - largest[1]).item())
