"""Throughput of self-speculative decoding, measured by decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask


@dataclass(frozen=True)
class Throughput:
    """What decoding some prompts with a draft took.

    Attributes:
        tokens_per_second: tokens of the responses over the wall time, prompts included: the tau of RAD.
        seconds: the wall time.
        tokens_read: tokens that draft and target read together.
    """

    tokens_per_second: float
    seconds: float
    tokens_read: int


def measure_throughput(
    model: Model, documents: Sequence[Document], mask: ComponentMask, draft_length: int
) -> Throughput:
    """Decode the prompts of documents greedily, one at a time, as Draft & Verify does (arXiv 2309.08168).

    Each is answered with as many tokens as the longest response of the documents has.

    Raises:
        RadistillError: as `speculative_generate`.
    """
    prompts = [document.tokens[: document.response_start] for document in documents]
    longest = max(document.response_tokens for document in documents)
    decoded = speculative_generate(model, prompts, mask, draft_length=draft_length, max_new_tokens=longest)
    # Both read the prompts; the draft each token that it proposes, the target those and one before them in each round.
    tokens_read = 2 * sum(map(len, prompts)) + 2 * decoded.drafted + decoded.rounds
    return Throughput(decoded.tokens_per_second, decoded.seconds, tokens_read)
