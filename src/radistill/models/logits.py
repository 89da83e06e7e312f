"""Logits where they count: at the positions that predict response tokens."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from radistill.models.sequences import Batch


class ResponseLogits(NamedTuple):
    """Predictions of the response tokens of a batch, row after row.

    Attributes:
        logits: [tokens, vocab], the distribution before each response token.
        targets: [tokens], long, the response tokens themselves.
        rows: [tokens], long, the row of the batch that each token belongs to.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


def response_logits(network: PreTrainedModel, batch: Batch) -> ResponseLogits:
    """Run `network` over a batch and return its logits for the response tokens only.

    The output embedding is applied only at positions that some row needs: for a long prompt and a large vocabulary that
    saves most of its cost and memory. Gradients flow as in a plain forward.
    """
    predicts = batch.response_mask[:, 1:]  # [batch, time - 1]: position t predicts token t + 1
    kept = predicts.any(dim=0).nonzero().squeeze(1)
    output = network(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=kept, use_cache=False
    )
    selected = predicts[:, kept]
    return ResponseLogits(
        logits=output.logits[selected],
        targets=batch.input_ids[:, 1:][:, kept][selected],
        rows=torch.nonzero(selected)[:, 0],
    )
