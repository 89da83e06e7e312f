"""A search for the fastest draft among all that skip some components of some layers (arXiv 2309.08168)."""

from collections.abc import Sequence

from radistill.console import note
from radistill.diagnosis.latency import Latencies
from radistill.diagnosis.objectives import ThroughputModelled
from radistill.diagnosis.search import search
from radistill.diagnosis.selectors.base import Problem, Selector
from radistill.diagnosis.selectors.greedy import Greedy
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask
from radistill.speculation.presets import describe_mask


def check_most(latencies: Latencies, most: int) -> None:
    """Check that a draft may skip `most` of the timed parts.

    Raises:
        RadistillError: if it would skip none, or all.
    """
    parts = len(latencies.components)
    if not 1 <= most < parts:
        raise RadistillError(f"--search is {most}, but this model has {parts} parts: it must be from 1 to {parts - 1}")


def find_draft(
    model: Model,
    documents: Sequence[Document],
    latencies: Latencies,
    most: int,
    *,
    selector: Selector | None = None,
    passes: float | None = None,
    seed: int = 0,
) -> ComponentMask:
    """Search the mask whose greedy self-speculation is the fastest, as `ThroughputModelled` predicts it.

    Draft & Verify searches the masks of attention and MLP by Bayesian optimisation over decoding; here every part of
    every layer is a candidate, a hybrid's state space too, and one teacher-forced pass judges a mask.

    Args:
        model: drafts for itself.
        documents: with responses that the model wrote greedily.
        latencies: of its components, the parts that may be skipped.
        most: (layer, component) pairs that are skipped at most; at least 1 is, and not all are.
        selector: by default greedy, which also swaps.
        passes: as in `diagnose`.
        seed: of every random choice.

    Raises:
        RadistillError: as `check_most` and `Trials`.
    """
    check_most(latencies, most)
    trials = Trials(model, documents, ThroughputModelled(latencies), parts=sorted(latencies.components))
    found = search(selector or Greedy(), Problem(trials, most, seed, free=True), passes, field="--passes")
    mask = found.judgement.mask
    note(
        f"found among {len(found.history)} judged drafts, which `generate --skip` takes: {describe_mask(mask)}; "
        f"{found.value * latencies.verify(1):.2f} times plain decoding on the documents of the search"
    )
    return mask
