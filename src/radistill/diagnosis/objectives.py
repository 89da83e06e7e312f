"""What a search maximises: figures that one teacher-forced pass of a draft gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from radistill.speculation.acceptance import acceptance_rate, mean_accepted_length


@dataclass(frozen=True)
class DraftPass:
    """What is known of a draft after one pass over the calibration responses.

    Attributes:
        agreements: one [tokens] bool tensor a response: would the target have accepted this token?
        kl: KL(target || draft), mean over response tokens, in nats.
    """

    agreements: Sequence[Tensor]
    kl: float


def acceptance(draft: DraftPass) -> float:
    """Share of tokens that the target accepts."""
    return acceptance_rate(draft.agreements)


def accepted_length(draft: DraftPass) -> float:
    """Mean accepted tokens a round at draft length 4: the throughput tau of RAD for drafts of equal cost."""
    return mean_accepted_length(draft.agreements, draft_length=4)


def negative_kl(draft: DraftPass) -> float:
    """Minus KL(target || draft) in nats: smoother than acceptance, so it tells more on few tokens."""
    return -draft.kl


OBJECTIVES: dict[str, Callable[[DraftPass], float]] = {
    "acceptance": acceptance,
    "accepted-length": accepted_length,
    "kl": negative_kl,
}
