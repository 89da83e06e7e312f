"""Losses against a teacher of whom only the k largest probabilities of each token are known.

The k tokens are k categories, and the rest of the vocabulary is one more. Every loss works on k + 1 categories as it
does on a vocabulary. Merging tokens into one category loses information: by the data processing inequality (for a KL,
the log-sum inequality; Cover and Thomas, Elements of Information Theory, theorem 2.7.1) every loss here that is an
f-divergence, or grows with one, is at most what it would be over the whole vocabulary: all of them but `lk-lambda`,
whose weights change with the merging.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from radistill.models.divergence import precise


@dataclass(frozen=True)
class TopK:
    """A teacher's next-token distributions, as far as they are known; it stands for logits [tokens, vocab].

    Attributes:
        ids: [tokens, k], long, different tokens in each row.
        log_probabilities: [tokens, k], of those tokens, at temperature 1.
        tail: [tokens], log of the mass of all other tokens; -inf where there is none.
        best: [tokens], long, the most likely token, the first of several.
        vocabulary: entries that the probabilities are over.
    """

    ids: Tensor
    log_probabilities: Tensor
    tail: Tensor
    best: Tensor
    vocabulary: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the logits that it stands for."""
        return len(self.ids), self.vocabulary

    def __getitem__(self, rows: slice | Tensor) -> "TopK":
        """Some of the tokens."""
        return self._with(lambda part: part[rows])

    def to(self, device: torch.device) -> "TopK":
        """The same on another device."""
        return self._with(lambda part: part.to(device))

    def at(self, tokens: Tensor) -> "TopK":
        """Some of the tokens, [kept], whose places may be on another device."""
        return self[tokens.to(self.ids.device)]

    def logits(self, rows: slice, vocabulary: int) -> "TopK":
        """What stands in the place of the logits of some of the tokens."""
        return self[rows]

    def _with(self, change: Callable[[Tensor], Tensor]) -> "TopK":
        ids, logs, tail, best = map(change, (self.ids, self.log_probabilities, self.tail, self.best))
        return TopK(ids, logs, tail, best, self.vocabulary)

    @property
    def _whole(self) -> bool:
        """Whether no token is left for a tail."""
        return self.ids.shape[1] == self.vocabulary

    def categories(self) -> Tensor:
        """[tokens, k + 1], log-probabilities of the k tokens and of the rest; [tokens, k] where there is no rest."""
        if self._whole:
            return self.log_probabilities
        return torch.cat([self.log_probabilities, self.tail[:, None]], dim=1)

    def categories_of(self, logits: Tensor) -> Tensor:
        """Logits of another model over these categories: their softmax is its softmax over the vocabulary, merged.

        The logit of the rest is the log of the sum of the exponentials of its logits, so nothing is subtracted from 1.

        Args:
            logits: [tokens, vocab]; entries beyond `vocabulary` do not count.

        Returns:
            [tokens, k + 1], float32 at least, or [tokens, k] where there is no rest.
        """
        logits = precise(logits[:, : self.vocabulary])
        known = logits.gather(1, self.ids)
        if self._whole:
            return known
        rest = logits.scatter(1, self.ids, -math.inf)
        # Where all of the rest is ruled out, the gradient of a logsumexp would be NaN; it is 0.
        none = (rest == -math.inf).all(dim=1, keepdim=True)
        tail = rest.masked_fill(none, 0.0).logsumexp(dim=1, keepdim=True).masked_fill(none, -math.inf)
        return torch.cat([known, tail], dim=1)


def top_k_of(logits: Tensor, k: int) -> TopK:
    """The k largest log-probabilities of each token, and the rest as one.

    Args:
        logits: [tokens, vocab].
        k: at least 1; all of a vocabulary that is smaller.
    """
    logs = torch.log_softmax(precise(logits), dim=1)
    found = logs.topk(min(k, logs.shape[1]), dim=1)
    tail = logs.scatter(1, found.indices, -math.inf).logsumexp(dim=1)
    return TopK(found.indices, found.values, tail, logits.argmax(dim=1), logs.shape[1])


def over_categories(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[TopK, Tensor], Tensor]:
    """A loss between two models' logits, as one between a `TopK` and a student's logits, [tokens, vocab], to [tokens].

    `loss` must be at temperature 1: what another temperature does to the rest cannot be known from its sum.
    """
    return lambda teacher, logits: loss(teacher.categories(), teacher.categories_of(logits))
