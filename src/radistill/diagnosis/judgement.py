"""What one teacher-forced pass says of a draft, and how it is kept."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from radistill.speculation.acceptance import acceptance_rate, mean_accepted_length
from radistill.speculation.masks import ComponentMask
from radistill.speculation.throughput import Throughput

JUDGED_LENGTHS = tuple(range(1, 17))
"""Draft lengths whose accepted tokens are read off: all that a search may choose from."""


@dataclass(frozen=True)
class DraftPass:
    """A draft's pass over the calibration responses.

    Attributes:
        agreements: one [tokens] bool tensor a response: would the target have accepted this token?
        kl: KL(target || draft), mean over response tokens, in nats.
        sampled_acceptance: sum_v min(p, q) at temperature 1, mean over response tokens.
    """

    agreements: Sequence[Tensor]
    kl: float
    sampled_acceptance: float


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
    """

    mask: ComponentMask
    acceptance_rate: float
    mean_accepted_length: dict[int, float]
    kl: float
    sampled_acceptance: float = float("nan")
    decoded: dict[int, Throughput] = field(default_factory=dict)

    @classmethod
    def of(cls, mask: ComponentMask, draft: DraftPass) -> "Judgement":
        """Summarise a pass."""
        lengths = {length: mean_accepted_length(draft.agreements, length) for length in JUDGED_LENGTHS}
        return cls(mask, acceptance_rate(draft.agreements), lengths, draft.kl, draft.sampled_acceptance)

    def to_row(self) -> dict[str, Any]:
        """The figures as JSON; what is not finite becomes None. The mask is the caller's to write."""
        row: dict[str, Any] = {
            "acceptance_rate": self.acceptance_rate,
            "mean_accepted_length": list(self.mean_accepted_length.values()),
            "kl": self.kl if math.isfinite(self.kl) else None,
            "sampled_acceptance": self.sampled_acceptance if math.isfinite(self.sampled_acceptance) else None,
        }
        if self.decoded:
            row["decoded"] = {str(length): asdict(throughput) for length, throughput in self.decoded.items()}
        return row

    @classmethod
    def from_row(cls, mask: ComponentMask, row: dict[str, Any]) -> "Judgement":
        """The inverse of `to_row`."""
        lengths = dict(zip(JUDGED_LENGTHS, row["mean_accepted_length"], strict=True))
        decoded = {int(length): Throughput(**figures) for length, figures in row.get("decoded", {}).items()}
        kl, sampled = (float("nan") if row[name] is None else row[name] for name in ("kl", "sampled_acceptance"))
        return cls(mask, row["acceptance_rate"], lengths, kl, sampled, decoded)
