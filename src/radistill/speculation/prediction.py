"""What decoding will accept, from one teacher-forced pass: the claim that diagnosis rests on, as a function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.acceptance import rounds_of
from radistill.speculation.masks import ComponentMask, masked


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
    mask: ComponentMask,
    draft_lengths: Sequence[int],
    *,
    confidence: float | None = None,
) -> dict[int, list[int]]:
    """Accepted tokens in each round of greedy decoding with a separate draft cache, without decoding.

    Args:
        model: the target.
        document: a prompt and the target's own greedy response.
        mask: what the draft skips.
        draft_lengths: tokens drafted in a round.
        confidence: as in `speculative_generate`.

    Returns:
        By draft length, what `Decoded.accepted_by_round` will be.
    """
    batch = collate([document], model.pad_token_id, model.network.device)
    with masked(model, mask):
        draft = response_logits(model.network, batch)
    # A distribution that is no number proposes nothing, so it agrees with nothing.
    agreement = (draft.logits.argmax(dim=-1) == draft.targets) & ~draft.logits.isnan().any(dim=-1)
    unsure = None
    if confidence is not None:
        unsure = (draft.logits.float().softmax(dim=-1).amax(dim=-1) < confidence).tolist()
    return {length: rounds_of(agreement.tolist(), length, unsure) for length in draft_lengths}


@torch.inference_mode()
def find_parting(model: Model, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> Parting | None:
    """The first token in which two responses of a model to a prompt differ, or None."""
    if list(one) == list(other):
        return None
    both = min(len(one), len(other))
    position = next((index for index in range(both) if one[index] != other[index]), both)
    text = torch.tensor([[*prompt, *one[:position]]], device=model.network.device)
    largest = model.network(input_ids=text, use_cache=False).logits[0, -1].float().topk(2).values
    return Parting(position, (largest[0] - largest[1]).item())
