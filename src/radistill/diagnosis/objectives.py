"""What a search maximises: a figure computed from one teacher-forced pass of a draft."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.latency import Latencies, timed_once
from radistill.models.loading import Model

WORST = -1e6
"""The value of a draft whose logits overflow: as bad as can be, and comparable."""


class Objective(Protocol):
    """Turns a judgement into a number; larger is better."""

    @property
    def name(self) -> str:
        """Its key in `OBJECTIVES`."""
        ...

    def value(self, draft: Judgement) -> float:
        """What the search maximises."""
        ...

    def record(self, draft: Judgement) -> dict[str, Any]:
        """For the plan: name, value, and all that is needed to compute the value again."""
        ...


@dataclass(frozen=True)
class Figure:
    """An objective that is one of the draft's figures."""

    name: str
    figure: Callable[[Judgement], float]

    def value(self, draft: Judgement) -> float:
        """The figure; a draft that has none is the worst."""
        value = self.figure(draft)
        return value if math.isfinite(value) else WORST

    def record(self, draft: Judgement) -> dict[str, Any]:
        """Name and value."""
        return {"name": self.name, "value": self.value(draft)}


@dataclass(frozen=True)
class ThroughputModelled:
    """Tokens a second of self-speculative decoding (the tau of RAD, arXiv 2505.22135), from timed components.

    A round drafts n tokens, one decoding step each, and verifies them in one pass of the full model; it yields the
    accepted tokens and one of the target's own (arXiv 2211.17192). n is chosen to be the best for each draft.
    """

    latencies: Latencies
    name: str = field(default="throughput-modelled", init=False)

    def by_length(self, draft: Judgement) -> dict[int, float]:
        """Tokens a second for each draft length."""
        step = self.latencies.step(draft.mask)
        return {
            length: (accepted + 1) / (length * step + self.latencies.verify(length + 1))
            for length, accepted in draft.mean_accepted_length.items()
        }

    def value(self, draft: Judgement) -> float:
        """Tokens a second at the best draft length."""
        return max(self.by_length(draft).values()) if math.isfinite(draft.kl) else WORST

    def record(self, draft: Judgement) -> dict[str, Any]:
        """Name, value, the chosen draft length, the gain over plain decoding, and the latencies."""
        speeds = self.by_length(draft)
        return {
            "name": self.name,
            "value": self.value(draft),
            "draft_length": max(speeds, key=speeds.__getitem__),
            "speedup": self.value(draft) * self.latencies.verify(1),
            "latencies": self.latencies.to_json(),
        }


def _figure(name: str, figure: Callable[[Judgement], float]) -> Callable[[Model, int, Path | None], Objective]:
    return lambda model, context, folder: Figure(name, figure)


OBJECTIVES: dict[str, Callable[[Model, int, Path | None], Objective]] = {
    # Share of tokens that the target accepts.
    "acceptance": _figure("acceptance", lambda draft: draft.acceptance_rate),
    # Mean accepted tokens a round at draft length 4: RAD's tau for drafts of equal cost.
    "accepted-length": _figure("accepted-length", lambda draft: draft.mean_accepted_length[4]),
    # Minus KL(target || draft) in nats: smoother than acceptance, so it tells more on few tokens.
    "kl": _figure("kl", lambda draft: -draft.kl),
    "throughput-modelled": lambda model, context, folder: ThroughputModelled(timed_once(model, context, folder)),
}
"""From a name to the function that makes the objective for a model, a context length and the search's folder."""
