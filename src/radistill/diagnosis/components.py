"""What a model loses when a class of components is off: component-aware drafts (arXiv 2605.01106) side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.models.logits import ResponseLogits, response_logits
from radistill.models.sequences import Document, batches, collate
from radistill.speculation.acceptance import DRAFT_LENGTHS, acceptance_rate, greedy_agreement, mean_accepted_length
from radistill.speculation.masks import ComponentMask, masked, masked_modules
from radistill.speculation.presets import component_off, describe_mask, early_exit


@dataclass(frozen=True)
class DraftFigures:
    """What one draft is worth and what it saves.

    Attributes:
        name: the preset, or the mask as the user wrote it.
        mask: what is skipped, as `parse_mask` reads it.
        acceptance_rate: share of response tokens that the full model accepts, greedily.
        mean_accepted_length: accepted tokens a round, by draft length.
        perplexity_ratio: perplexity of the response under the draft over that under the full model; None if the draft's
            is not finite.
        parameters: weights that the draft never reads; one that a layer shares with another which is not skipped counts
            as read.
        kv_bytes_per_token: KV cache that it does not write, in bfloat16.
        ssm_state_bytes: recurrent state of a sequence that it does not keep, in float32.
    """

    name: str
    mask: str
    acceptance_rate: float
    mean_accepted_length: dict[int, float]
    perplexity_ratio: float | None
    parameters: int
    kv_bytes_per_token: int
    ssm_state_bytes: int


@dataclass(frozen=True)
class ComponentTable:
    """Drafts of one model, measured on the same documents.

    Attributes:
        perplexity: of the responses under the full model; None if it is beyond what a float can hold.
        parameters, kv_bytes_per_token, ssm_state_bytes: of the full model, as in `DraftFigures`.
    """

    model: str
    n_documents: int
    n_tokens: int
    perplexity: float | None
    parameters: int
    kv_bytes_per_token: int
    ssm_state_bytes: int
    drafts: list[DraftFigures]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def default_masks(model: Model) -> dict[str, ComponentMask]:
    """The drafts worth comparing in any model: every component that it has switched off, and two early exits."""
    layers = model.anatomy.num_layers
    masks = {
        f"{component.value}-off": component_off(model, component)
        for component in Component
        if any(model.anatomy.modules(model.network, layer, component) for layer in range(layers))
    }
    exits = sorted({layers // 2, layers * 3 // 4} - {0, layers})
    return masks | {f"exit:{kept}": early_exit(model, kept) for kept in exits}


def measure_drafts(
    model: Model,
    documents: Sequence[Document],
    masks: Mapping[str, ComponentMask] | None = None,
    *,
    tokens_per_batch: int = 2048,
) -> ComponentTable:
    """Measure drafts that skip components, each by one teacher-forced pass over the documents.

    Args:
        model: the full model.
        documents: only their responses count, best written by the model itself.
        masks: the drafts by name; None takes `default_masks`.
        tokens_per_batch: padded tokens in one forward pass.

    Raises:
        RadistillError: without documents, for a mask that the model has no components for, or if the full model's
            logits are not numbers.
    """
    masks = default_masks(model) if masks is None else masks
    if not documents:
        raise RadistillError("components: no documents to measure on; ask for at least one")
    for mask in masks.values():
        masked_modules(model, mask)
    groups = batches(documents, tokens_per_batch)
    tallies = {name: _Tally() for name in masks}
    full_nll, tokens = 0.0, 0
    with progress("drafts", len(groups) * len(masks), "passes") as advance, torch.inference_mode():
        for group in groups:
            batch = collate(group, model.pad_token_id, model.network.device)
            full = response_logits(model.network, batch)
            if not torch.isfinite(full.logits).all():
                raise RadistillError(f"{model.source}: the model's logits are NaN or infinite on these documents")
            full_nll += _nll(full)
            tokens += len(full.targets)
            for name, mask in masks.items():
                with masked(model, mask):
                    tallies[name].add(full, response_logits(model.network, batch))
                advance(1, name)
    return ComponentTable(
        model=model.source,
        n_documents=len(documents),
        n_tokens=tokens,
        perplexity=_exp(full_nll / tokens),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        kv_bytes_per_token=model.anatomy.kv_bytes_per_token(),
        ssm_state_bytes=model.anatomy.ssm_state_bytes(),
        drafts=[_figures(model, name, mask, tallies[name], full_nll, tokens) for name, mask in masks.items()],
    )


class _Tally:
    """Sums over the batches that one draft has read."""

    def __init__(self) -> None:
        self.agreements: list[Tensor] = []
        self.nll = 0.0

    def add(self, full: ResponseLogits, draft: ResponseLogits) -> None:
        agree = greedy_agreement(draft.logits, full.logits)
        self.agreements.extend(agree[draft.rows == row] for row in draft.rows.unique())
        self.nll += _nll(draft)


def _nll(output: ResponseLogits) -> float:
    """-log p of the response tokens, summed, in nats."""
    return cross_entropy(output.logits.float(), output.targets, reduction="none").double().sum().item()


def _exp(value: float) -> float | None:
    """e^value; None where that is no number that a float holds."""
    return math.exp(value) if math.isfinite(value) and value < 700 else None


def _figures(model: Model, name: str, mask: ComponentMask, tally: _Tally, full_nll: float, tokens: int) -> DraftFigures:
    anatomy = model.anatomy
    attention = [layer for layer, component in mask.skipped if component is Component.ATTENTION]
    ssm = [component for _, component in mask.skipped].count(Component.SSM)
    return DraftFigures(
        name=name,
        mask=describe_mask(mask),
        acceptance_rate=acceptance_rate(tally.agreements),
        mean_accepted_length={length: mean_accepted_length(tally.agreements, length) for length in DRAFT_LENGTHS},
        perplexity_ratio=_exp((tally.nll - full_nll) / tokens),
        parameters=_unread(model, mask),
        kv_bytes_per_token=anatomy.kv_bytes_per_token(
            layers=[layer for layer in attention if layer not in anatomy.lenders]
        ),
        ssm_state_bytes=anatomy.ssm_state_bytes() * ssm // max(1, len(anatomy.ssm_layers)),
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
