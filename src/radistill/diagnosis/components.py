"""What a model loses when a class of components is off: component-aware drafts (arXiv 2605.01106) side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from radistill.console import progress
from radistill.diagnosis.draft_tally import DraftTally, by_text, nll_of
from radistill.diagnosis.latency import Latencies
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, batches, collate
from radistill.speculation.masks import ComponentMask, masked, masked_modules
from radistill.speculation.measure import GREEDY, SAMPLED
from radistill.speculation.payoff import Estimate, Payoff, rounds_over
from radistill.speculation.presets import default_masks, describe_mask

ALPHA_LENGTHS = (2, 4, 8)
"""Draft lengths of the published table."""


@dataclass(frozen=True)
class AtTemperature:
    """How a draft fares at one temperature, on responses that were written at it.

    Attributes:
        temperature: that draft and full model choose tokens at; 0 is greedy.
        rule: `greedy`, or `sampled`, where the draft samples too.
        rate: mean acceptance of a response token.
        alpha: accepted over drafted tokens, by draft length.
        payoff: what it brings by the timed components; None where nothing was timed.
    """

    temperature: float
    rule: str
    rate: Estimate
    alpha: dict[int, Estimate]
    payoff: Payoff | None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        payoff = None if self.payoff is None else asdict(self.payoff) | {"verdict": self.payoff.verdict}
        return asdict(self) | {"payoff": payoff}


@dataclass(frozen=True)
class DraftFigures:
    """What one draft is worth and what it saves. Its distances are those at the first temperature's responses.

    Attributes:
        name: the preset, or the mask as the user wrote it.
        mask: what is skipped, as `parse_mask` reads it.
        temperatures: how it fares at each.
        perplexity_ratio: perplexity of the response under the draft over that under the full model; None if the draft's
            is not finite.
        tv: total variation distance of the two next-token distributions at temperature 1, sum |p - q| / 2, mean over
            response tokens; 1 where the draft's logits are NaN.
        kl: KL(full || draft) in nats a token, likewise; None if it is not finite.
        parameters: weights that the draft never reads; one that a layer shares with another which is not skipped counts
            as read.
        kv_bytes_per_token: KV cache that it does not write, in bfloat16.
        ssm_state_bytes: recurrent state of a sequence that it does not keep, in float32.
        step_seconds: of one decoding step by the timed components; None where nothing was timed.
    """

    name: str
    mask: str
    temperatures: list[AtTemperature]
    perplexity_ratio: Estimate | None
    tv: Estimate
    kl: Estimate | None
    parameters: int
    kv_bytes_per_token: int
    ssm_state_bytes: int
    step_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"temperatures": [one.to_json() for one in self.temperatures]}


@dataclass(frozen=True)
class ComponentTable:
    """Drafts of one model, measured on the same documents.

    Attributes:
        n_documents: responses at each temperature.
        n_tokens: of the responses at the first temperature.
        perplexity: of these under the full model; None if it is beyond what a float can hold.
        parameters, kv_bytes_per_token, ssm_state_bytes: of the full model, as in `DraftFigures`.
        latencies: what speeds were predicted from, if they were.
    """

    model: str
    n_documents: int
    n_tokens: int
    perplexity: float | None
    parameters: int
    kv_bytes_per_token: int
    ssm_state_bytes: int
    drafts: list[DraftFigures]
    latencies: Latencies | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        latencies = None if self.latencies is None else self.latencies.to_json()
        return vars(self) | {"drafts": [draft.to_json() for draft in self.drafts], "latencies": latencies}


def measure_drafts(
    model: Model,
    documents: Mapping[float, Sequence[Document]],
    masks: Mapping[str, ComponentMask] | None = None,
    *,
    latencies: Latencies | None = None,
    tokens_per_batch: int = 2048,
) -> ComponentTable:
    """Measure drafts that skip components, each by one teacher-forced pass over the documents of each temperature.

    Logits are kept no longer than for a batch.

    Args:
        model: the full model.
        documents: by temperature, 0 being greedy; only their responses count, best written by the model itself at this
            temperature.
        masks: the drafts by name; None takes `default_masks`.
        latencies: of the model's components, from which speeds are predicted; None predicts none.
        tokens_per_batch: padded tokens in one forward pass.

    Raises:
        RadistillError: without documents, for a mask that the model has no components for, or if the full model's
            logits are not numbers.
    """
    masks = default_masks(model) if masks is None else masks
    if not documents or not all(documents.values()):
        raise RadistillError("components: no documents to measure on; ask for at least one")
    for mask in masks.values():
        masked_modules(model, mask)
    first, *_ = documents
    groups = [(degree, group) for degree, texts in documents.items() for group in batches(texts, tokens_per_batch)]
    tallies = {name: DraftTally(documents) for name in masks}
    full_nll: list[float] = []
    with progress("drafts", len(groups) * len(masks), "passes") as advance, torch.inference_mode():
        for degree, group in groups:
            batch = collate(group, model.pad_token_id, model.network.device)
            full = response_logits(model.network, batch)
            if not torch.isfinite(full.logits).all():
                raise RadistillError(f"{model.source}: the model's logits are NaN or infinite on these documents")
            if degree == first:
                full_nll += [sum(text) for text in by_text(nll_of(full), full)]
            for name, mask in masks.items():
                with masked(model, mask):
                    draft = response_logits(model.network, batch)
                tallies[name].accept(full, draft, degree)
                if degree == first:
                    tallies[name].compare(full, draft)
                advance(1, name)
    tokens = sum(document.response_tokens for document in documents[first])
    return ComponentTable(
        model=model.source,
        n_documents=len(documents[first]),
        n_tokens=tokens,
        perplexity=_exp(sum(full_nll) / tokens),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        kv_bytes_per_token=model.anatomy.kv_bytes_per_token(),
        ssm_state_bytes=model.anatomy.ssm_state_bytes(),
        drafts=[_figures(model, name, mask, tallies[name], full_nll, latencies) for name, mask in masks.items()],
        latencies=latencies,
    )


def _exp(value: float) -> float | None:
    """e^value; None where that is no number that a float holds."""
    return math.exp(value) if math.isfinite(value) and value < 700 else None


def _finite(sums: Sequence[float], tokens: Sequence[int]) -> Estimate | None:
    """The mean over tokens, if it is a number."""
    return Estimate.of(sums, tokens) if all(map(math.isfinite, sums)) else None


def _ratio(logs: Estimate | None) -> Estimate | None:
    """e to the power of an estimate; None as `_exp`."""
    value, low, high = (None,) * 3 if logs is None else map(_exp, (logs.value, *logs.interval))
    return None if value is None or low is None or high is None else Estimate(value, (low, high))


def _figures(
    model: Model,
    name: str,
    mask: ComponentMask,
    tally: DraftTally,
    full_nll: Sequence[float],
    latencies: Latencies | None,
) -> DraftFigures:
    anatomy = model.anatomy
    attention = [layer for layer, component in mask.skipped if component is Component.ATTENTION]
    ssm = [component for _, component in mask.skipped].count(Component.SSM)
    more = [draft - full for draft, full in zip(tally.nll, full_nll, strict=True)]
    return DraftFigures(
        name=name,
        mask=describe_mask(mask),
        temperatures=[_at_temperature(degree, texts, mask, latencies) for degree, texts in tally.accepted.items()],
        perplexity_ratio=_ratio(_finite(more, tally.tokens)),
        tv=Estimate.of(tally.tv, tally.tokens),
        kl=_finite(tally.kl, tally.tokens),
        parameters=_unread(model, mask),
        kv_bytes_per_token=anatomy.kv_bytes_per_token(
            layers=[layer for layer in attention if layer not in anatomy.lenders]
        ),
        ssm_state_bytes=anatomy.ssm_state_bytes() * ssm // max(1, len(anatomy.ssm_layers)),
        step_seconds=None if latencies is None else latencies.step(mask),
    )


def _at_temperature(
    temperature: float, texts: list[list[float]], mask: ComponentMask, latencies: Latencies | None
) -> AtTemperature:
    rounds = {length: [rounds_over(text, length) for text in texts] for length in ALPHA_LENGTHS}
    return AtTemperature(
        temperature=temperature,
        rule=SAMPLED if temperature else GREEDY,
        rate=Estimate.of([sum(text) for text in texts], [len(text) for text in texts]),
        alpha={
            length: Estimate.of([one.accepted.sum() for one in each], [one.drafted for one in each])
            for length, each in rounds.items()
        },
        payoff=None if latencies is None else Payoff.of(texts, latencies.rounds(mask)),
    )


def _unread(model: Model, mask: ComponentMask) -> int:
    """Weights of the skipped modules that no other module reads."""
    skipped = {module for module, _, _ in masked_modules(model, mask)}
    read: set[int] = set()

    def walk(module: torch.nn.Module) -> None:
        if module not in skipped:
            read.update(id(parameter) for parameter in module.parameters(recurse=False))
            for child in module.children():
                walk(child)

    walk(model.network)
    return sum(parameter.numel() for parameter in model.network.parameters() if id(parameter) not in read)
