"""Logits where they count: at the positions that predict response tokens."""

from typing import NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
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

    The output embedding is applied only where a response token is predicted: for a long prompt and a large vocabulary
    that saves most of its cost and memory. Gradients flow as in a plain forward.
    """
    predicts = batch.response_mask[:, 1:]  # [batch, time - 1]: position t predicts token t + 1
    kept = predicts.any(dim=0).nonzero().squeeze(1)
    selected = predicts[:, kept]

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][selected],)

    # `logits_to_keep` cuts the same positions out of every row; rows of different lengths need different ones.
    head = extract_model_from_parallel(network).get_output_embeddings()
    handle = head.register_forward_pre_hook(select)
    try:
        output = network(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=kept, use_cache=False
        )
    finally:
        handle.remove()
    return ResponseLogits(
        logits=output.logits, targets=batch.input_ids[:, 1:][:, kept][selected], rows=torch.nonzero(selected)[:, 0]
    )
