"""What the teacher-forced passes of one draft tell of each document: acceptance and distances."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from radistill.models.divergence import kl_of_logs
from radistill.models.logits import ResponseLogits
from radistill.speculation.acceptance import expected_acceptance, greedy_agreement
from radistill.speculation.measure import by_token


class DraftTally:
    """Figures of one draft, document by document.

    Attributes:
        accepted: by temperature, for each document the acceptance of each response token.
        nll, tv, kl: sums over the response tokens of each document, of those that `compare` was given.
        tokens: their numbers.
    """

    def __init__(self, temperatures: Mapping[float, object]) -> None:
        """Nothing is read yet; `accept` is told one of these temperatures."""
        self.accepted: dict[float, list[list[float]]] = {temperature: [] for temperature in temperatures}
        self.nll: list[float] = []
        self.tv: list[float] = []
        self.kl: list[float] = []
        self.tokens: list[int] = []

    def accept(self, full: ResponseLogits, draft: ResponseLogits, temperature: float) -> None:
        """The acceptance of each token."""
        if temperature:
            accepted = by_token(full.logits, draft.logits, temperature, expected_acceptance)
        else:
            accepted = greedy_agreement(draft.logits, full.logits).double()
        self.accepted[temperature] += by_text(accepted, draft)

    def compare(self, full: ResponseLogits, draft: ResponseLogits) -> None:
        """The distances, summed over each document's tokens."""
        both = by_token(full.logits, draft.logits, 1.0, _overlap_and_kl)
        for sums, figure in ((self.nll, nll_of(draft)), (self.tv, 1 - both[:, 0]), (self.kl, both[:, 1])):
            sums += [sum(text) for text in by_text(figure, draft)]
        self.tokens += [len(text) for text in by_text(draft.rows, draft)]


def _overlap_and_kl(full: Tensor, draft: Tensor) -> Tensor:
    """[tokens, 2]: the overlap of two distributions is 1 less their total variation distance."""
    return torch.stack([expected_acceptance(full, draft), kl_of_logs(full, draft)], dim=-1)


def by_text(figure: Tensor, output: ResponseLogits) -> list[list[float]]:
    """A figure of each response token, document by document."""
    return [figure[output.rows == row].tolist() for row in output.rows.unique()]


def nll_of(output: ResponseLogits) -> Tensor:
    """[tokens], -log p of the response tokens, in nats."""
    return cross_entropy(output.logits.float(), output.targets, reduction="none").double()
