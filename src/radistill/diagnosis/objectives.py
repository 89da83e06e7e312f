"""What a search maximises: a figure computed from one teacher-forced pass of a draft, or from decoding with it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radistill.diagnosis.judgement import Judgement
from radistill.diagnosis.latency import Latencies, timed_once
from radistill.diagnosis.plan import By
from radistill.errors import RadistillError
from radistill.models.loading import Model

WORST = -1e6
"""The value of a draft whose logits overflow: as bad as can be, and comparable."""


class Objective(ABC):
    """Turns a judgement into a number; larger is better.

    Attributes:
        name: its key in `OBJECTIVES`.
        decoded_length: the draft length at which a set must be decoded to be judged; None where a forward pass tells
            enough.
    """

    name: str
    decoded_length: int | None = None

    @abstractmethod
    def value(self, draft: Judgement) -> float:
        """What the search maximises."""

    def record(self, draft: Judgement) -> dict[str, Any]:
        """For the plan: name, value, and all that is needed to compute the value again."""
        return {**self.to_json(), "value": self.value(draft)}

    def to_json(self) -> dict[str, Any]:
        """What `objective_from` makes it of again, in another process."""
        return {"name": self.name}


@dataclass(frozen=True)
class ThroughputModelled(Objective):
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
            **super().record(draft),
            "draft_length": max(speeds, key=speeds.__getitem__),
            "speedup": self.value(draft) * self.latencies.verify(1),
        }

    def to_json(self) -> dict[str, Any]:
        """Name and latencies."""
        return {"name": self.name, "latencies": self.latencies.to_json()}


@dataclass(frozen=True)
class ThroughputMeasured(Objective):
    """Tokens a second of real self-speculative decoding on the calibration prompts: RAD's tau as published.

    A trial takes some dozens of times as long as a forward pass, and two timings of a set are never the same; those
    that were taken are kept with the judgements, so that a search that is resumed finds them again.
    """

    decoded_length: int = 4
    name: str = field(default="throughput-measured", init=False)

    def value(self, draft: Judgement) -> float:
        """Tokens a second."""
        return draft.decoded[self.decoded_length].tokens_per_second if math.isfinite(draft.kl) else WORST

    def to_json(self) -> dict[str, Any]:
        """Name and draft length."""
        return {"name": self.name, "draft_length": self.decoded_length}


@dataclass
class Penalised(Objective):
    """Another objective, less a price for every attention layer that stays: then the number of layers is free.

    The price is booked the other way round, as a gain for each layer of the set, which ranks sets alike.
    """

    inner: Objective
    penalty: float

    def __post_init__(self) -> None:
        self.name, self.decoded_length = self.inner.name, self.inner.decoded_length

    def value(self, draft: Judgement) -> float:
        """The inner objective's value and what the layers gain."""
        return self.inner.value(draft) + self.penalty * len({layer for layer, _ in draft.mask.skipped})

    def record(self, draft: Judgement) -> dict[str, Any]:
        """What the inner objective records, with the penalised value, and the penalty."""
        return {**self.inner.record(draft), "value": self.value(draft), "penalty": self.penalty}

    def to_json(self) -> dict[str, Any]:
        """The inner objective's, and the penalty."""
        return {**self.inner.to_json(), "penalty": self.penalty}


@dataclass
class Figures(Objective):
    """One of the draft's figures, or a weighted sum of several, in the order of the recipe.

    The name of a sum has its weights, as `kl + 0.5 retrieval`.
    """

    chosen: "ObjectiveChoice"

    def __post_init__(self) -> None:
        self._weights = {self.chosen: 1.0} if isinstance(self.chosen, str) else dict(self.chosen)
        parts = (name if weight == 1 else f"{weight:g} {name}" for name, weight in self._weights.items())
        self.name = " + ".join(parts)

    def value(self, draft: Judgement) -> float:
        """The sum; a figure that a draft does not have counts as the worst."""
        figures = {name: _FIGURES[name](draft) for name in self._weights}
        finite = {name: value if math.isfinite(value) else WORST for name, value in figures.items()}
        return sum(weight * finite[name] for name, weight in self._weights.items())

    def to_json(self) -> dict[str, Any]:
        """Name, and weights where they were chosen."""
        return {"name": self.name} if isinstance(self.chosen, str) else {"name": self.name, "weights": self._weights}


_FIGURES: dict[str, Callable[[Judgement], float]] = {
    # Share of tokens that the target accepts.
    "acceptance": lambda draft: draft.acceptance_rate,
    # The same where both sample at temperature 1 (arXiv 2211.17192).
    "acceptance-sampled": lambda draft: draft.sampled_acceptance,
    # Mean accepted tokens a round at draft length 4: RAD's tau for drafts of equal cost.
    "accepted-length": lambda draft: draft.mean_accepted_length[4],
    # Minus KL(target || draft) in nats: smoother than acceptance, so it tells more on few tokens.
    "kl": lambda draft: -draft.kl,
    # The same on the answers of the retrieval texts: what it costs that something is not found again.
    "retrieval": lambda draft: -draft.retrieval_kl,
    # Share of the retrieval texts whose number is found.
    "recall": lambda draft: draft.recall,
}
OF_RETRIEVAL = ("retrieval", "recall")
"""Those that need retrieval texts."""

_THROUGHPUTS = ("throughput-modelled", "throughput-measured")

OBJECTIVES = (*_FIGURES, *_THROUGHPUTS)
"""Their names."""


ObjectiveChoice = str | dict[str, float]
"""One of `OBJECTIVES`, or weights of several."""


def check_objective(chosen: ObjectiveChoice) -> ObjectiveChoice:
    """The choice, if it can be one.

    Raises:
        ValueError: for an unknown name, weights of a throughput, or weights that are not above zero.
    """
    if isinstance(chosen, str):
        if chosen not in OBJECTIVES:
            raise ValueError(f"must be one of {', '.join(sorted(OBJECTIVES))}, or weights such as {{kl: 1, recall: 1}}")
        return chosen
    if not chosen or any(name not in _FIGURES or not 0 < weight < math.inf for name, weight in chosen.items()):
        raise ValueError(f"must have weights above 0 of {', '.join(sorted(_FIGURES))}")
    return chosen


def needs_retrieval(chosen: ObjectiveChoice) -> bool:
    """Whether an objective can only be computed with retrieval texts."""
    return any(name in OF_RETRIEVAL for name in ([chosen] if isinstance(chosen, str) else chosen))


def objective_obstacle(name: ObjectiveChoice, by: By) -> str | None:
    """Why a search by redundancy, or by replaceability, cannot maximise an objective; None where it can."""
    if by == "redundancy" or name not in _THROUGHPUTS:
        return None
    return f"diagnose.objective is {name}, which is about drafts that skip attention, unlike {', '.join(_FIGURES)}"


def make_objective(
    name: ObjectiveChoice, model: Model, context_length: int, folder: Path | None, draft_length: int = 4
) -> Objective:
    """An objective by its name, or a mix by its weights.

    Args:
        name: one of `OBJECTIVES`, or weights of several.
        model: the model to convert; `throughput-modelled` times its components.
        context_length: tokens in the cache meanwhile.
        folder: where the latencies are kept, so that a search that is resumed finds the same; None keeps them nowhere.
        draft_length: tokens that `throughput-measured` drafts in a round.

    Raises:
        RadistillError: listing the names that exist.
    """
    if name == "throughput-modelled":
        return ThroughputModelled(timed_once(model, context_length, folder))
    if name == "throughput-measured":
        return ThroughputMeasured(draft_length)
    try:
        check_objective(name)
    except ValueError as error:
        raise RadistillError(f"diagnose.objective is {name!r}, but it {error}") from None
    return Figures(name)


def objective_from(data: dict[str, Any]) -> Objective:
    """The objective that `to_json` wrote down; also what a plan records, so that a search can be repeated exactly."""
    if "penalty" in data:
        return Penalised(objective_from({key: data[key] for key in data if key != "penalty"}), data["penalty"])
    if data["name"] == "throughput-modelled":
        return ThroughputModelled(Latencies.from_json(data["latencies"]))
    if data["name"] == "throughput-measured":
        return ThroughputMeasured(data["draft_length"])
    return Figures(data.get("weights", data["name"]))
