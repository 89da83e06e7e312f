"""What one teacher-forced pass says of a draft, and how it is kept."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from radistill.speculation.acceptance import acceptance_rate, mean_accepted_length
from radistill.speculation.masks import ComponentMask
from radistill.speculation.throughput import Throughput

JUDGED_LENGTHS = tuple(range(1, 17))
"""Draft lengths whose accepted tokens are read off: all that a search may choose from."""

_FIGURES = ("kl", "sampled_acceptance", "retrieval_kl", "recall")
"""Those of a judgement that may be no number."""


@dataclass(frozen=True)
class DraftPass:
    """A draft's pass over responses.

    Attributes:
        agreements: one [tokens] bool tensor a response: would the target have accepted this token?
        found: one bool a response: is each of its tokens the draft's likeliest, so that it would write just this?
        nats: one number a response: KL(target || draft), summed over its tokens.
        accepted: one number a response: sum_v min(p, q) at temperature 1, summed over its tokens.
    """

    agreements: Sequence[Tensor]
    found: Sequence[bool]
    nats: Sequence[float]
    accepted: Sequence[float]

    @property
    def tokens(self) -> list[int]:
        """Of each response."""
        return [len(agreement) for agreement in self.agreements]

    @property
    def kl(self) -> float:
        """KL(target || draft), mean over response tokens, in nats."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def sampled_acceptance(self) -> float:
        """Expected acceptance at temperature 1, mean over response tokens."""
        return sum(self.accepted) / sum(self.tokens)


@dataclass(frozen=True)
class Judgement:
    """The figures of a draft that any objective can be computed from.

    Attributes:
        mask: what the draft skips, or has replaced.
        acceptance_rate: share of response tokens that the target accepts.
        mean_accepted_length: accepted tokens a round, for each of `JUDGED_LENGTHS`.
        kl: KL(target || draft), mean over response tokens, in nats; may be NaN or infinite for a broken draft.
        sampled_acceptance: expected acceptance where tokens are sampled at temperature 1 instead of taken greedily.
        decoded: what real decoding took, by draft length, where it was asked for.
        retrieval_kl: KL(target || draft) on the answers of the retrieval texts, mean over their tokens, in nats; NaN
            where there are none.
        recall: share of the retrieval texts whose number the draft finds; NaN where there are none.
    """

    mask: ComponentMask
    acceptance_rate: float
    mean_accepted_length: dict[int, float]
    kl: float
    sampled_acceptance: float = float("nan")
    decoded: dict[int, Throughput] = field(default_factory=dict)
    retrieval_kl: float = float("nan")
    recall: float = float("nan")

    @classmethod
    def of(cls, mask: ComponentMask, draft: DraftPass, retrieval: DraftPass | None = None) -> "Judgement":
        """Summarise a pass over the documents, and one over the retrieval texts."""
        lengths = {length: mean_accepted_length(draft.agreements, length) for length in JUDGED_LENGTHS}
        found = cls(mask, acceptance_rate(draft.agreements), lengths, draft.kl, draft.sampled_acceptance)
        if retrieval is None:
            return found
        return replace(found, retrieval_kl=retrieval.kl, recall=sum(retrieval.found) / len(retrieval.found))

    def to_row(self) -> dict[str, Any]:
        """The figures as JSON; what is not finite becomes None. The mask is the caller's to write."""
        row: dict[str, Any] = {
            "acceptance_rate": self.acceptance_rate,
            "mean_accepted_length": list(self.mean_accepted_length.values()),
        }
        figures = {name: getattr(self, name) for name in _FIGURES}
        row |= {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
        if self.decoded:
            row["decoded"] = {str(length): asdict(throughput) for length, throughput in self.decoded.items()}
        return row

    @classmethod
    def from_row(cls, mask: ComponentMask, row: dict[str, Any]) -> "Judgement":
        """The inverse of `to_row`."""
        lengths = dict(zip(JUDGED_LENGTHS, row["mean_accepted_length"], strict=True))
        decoded = {int(length): Throughput(**figures) for length, figures in row.get("decoded", {}).items()}
        figures = {name: float("nan") if row.get(name) is None else row[name] for name in _FIGURES}
        return cls(mask, row["acceptance_rate"], lengths, decoded=decoded, **figures)
