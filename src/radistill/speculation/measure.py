"""Measure whether a drafter pays: acceptance from teacher-forced passes, costs by the clock, and what follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.speculation.acceptance import expected_acceptance, likeliest_acceptance, likeliest_is
from radistill.speculation.drafters import Draft, Drafter
from radistill.speculation.masks import ComponentMask, masked_modules
from radistill.speculation.payoff import DRAFT_LENGTHS, LONGEST_DRAFT, Estimate, Payoff, RoundCosts, rounds_over
from radistill.speculation.presets import describe_mask
from radistill.speculation.round_costs import REPEATS, check_context, time_rounds

GREEDY, SAMPLED, LIKELIEST = "greedy", "sampled", "likeliest"
"""Temperature 0; above it, drafts that are sampled too (this project, transformers); and the draft's likeliest token
(vLLM, llama.cpp)."""

_TOKENS_AT_ONCE = 64


@dataclass(frozen=True)
class Acceptance:
    """How often a target accepts a drafter's tokens, on its own responses at a temperature.

    Attributes:
        temperature: that the responses were written at, and that draft and target choose tokens at.
        rule: `greedy`, `sampled` or `likeliest`.
        rate: mean over all response tokens.
        by_position: of a draft of 16 tokens, the share of first, second, ... tokens that are accepted, of those before
            which all were.
        accepted: accepted tokens a round, by draft length.
        tokens: for each response, the acceptance of each of its tokens.
    """

    temperature: float
    rule: str
    rate: Estimate
    by_position: list[Estimate]
    accepted: dict[int, Estimate]
    tokens: list[list[float]]

    @classmethod
    def of(cls, temperature: float, rule: str, tokens: list[list[float]]) -> "Acceptance":
        """From the acceptance of each token of each response."""
        rounds = {length: [rounds_over(text, length) for text in tokens] for length in DRAFT_LENGTHS}
        accepted = np.array([text.accepted for text in rounds[LONGEST_DRAFT]])  # [documents, position]
        tried = np.array([text.tried for text in rounds[LONGEST_DRAFT]])
        return cls(
            temperature=temperature,
            rule=rule,
            rate=Estimate.of([sum(text) for text in tokens], [len(text) for text in tokens]),
            by_position=[
                Estimate.of(accepted[:, position].tolist(), tried[:, position].tolist())
                for position in range(LONGEST_DRAFT)
                if tried[:, position].any()
            ],
            accepted={
                length: Estimate.of([text.accepted.sum() for text in texts], [text.number for text in texts])
                for length, texts in rounds.items()
            },
            tokens=tokens,
        )


@dataclass(frozen=True)
class Outcome:
    """What a drafter brings at one temperature, with one way to draft, at one context and batch size."""

    temperature: float
    rule: str
    costs: RoundCosts
    payoff: Payoff


@dataclass(frozen=True)
class DrafterFigures:
    """A drafter measured on a target.

    Attributes:
        target: its source.
        drafter: the source of a model, or a mask in words.
        documents: responses at each temperature.
    """

    target: str
    drafter: str
    documents: int
    acceptances: list[Acceptance]
    outcomes: list[Outcome]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the verdicts, and without the acceptance of single tokens."""
        plain = asdict(self)
        for acceptance in plain["acceptances"]:
            del acceptance["tokens"]
        for outcome, of in zip(plain["outcomes"], self.outcomes, strict=True):
            outcome["verdict"] = of.payoff.verdict
        return plain


def check_drafter(target: Model, drafter: Drafter, contexts: Sequence[int] = ()) -> None:
    """Refuse a drafter that cannot draft for a target, or that is larger: it can only slow it down.

    Raises:
        RadistillError: for another tokenizer, a larger model, a mask of components that the target does not have, or a
            context, in tokens, that is too long for one of them.
    """
    draft = Draft.of(target, drafter)
    if isinstance(drafter, ComponentMask):
        masked_modules(target, drafter)
    else:
        check_smaller(drafter.network, target.network, (drafter.source, target.source))
    for context in contexts:
        check_context(draft, context)


def check_smaller(drafter: nn.Module, target: nn.Module, sources: tuple[str, str]) -> None:
    """Refuse a drafter with more weights than its target; `sources` names the two."""
    its, own = (sum(parameter.numel() for parameter in network.parameters()) for network in (drafter, target))
    if its > own:
        raise RadistillError(
            f"drafter {sources[0]} has {its:,} weights, more than the {own:,} of the target {sources[1]}; "
            "a drafter has to be smaller: are the two swapped?"
        )


def measure_drafter(
    target: Model,
    drafter: Drafter,
    documents: Mapping[float, Sequence[Document]],
    *,
    contexts: Sequence[int] = (512,),
    batch_sizes: Sequence[int] = (1,),
    repeats: int = REPEATS,
) -> DrafterFigures:
    """Measure acceptance and costs of a drafter with a cache of its own, and whether it pays.

    Args:
        target, drafter: the pair; with a mask the target drafts for itself.
        documents: by temperature, prompts with the responses that the target itself wrote at this temperature.
        contexts: tokens in the caches while steps are timed.
        batch_sizes: rows that run at once meanwhile.
        repeats: timed turns of each.

    Raises:
        RadistillError: as `check_drafter` and `time_rounds`, without documents, and if the target's logits are NaN.
    """
    check_drafter(target, drafter, contexts)
    if not documents or not all(documents.values()):
        raise RadistillError("drafter: no documents to measure on; ask for at least one")
    acceptances = [
        Acceptance.of(temperature, rule, tokens)
        for temperature, texts in documents.items()
        for rule, tokens in acceptance_of(target, drafter, texts, temperature).items()
    ]
    sampled = any(temperature > 0 for temperature in documents)
    turns = len(contexts) * len(batch_sizes) * (1 + sampled) * (repeats + 1)
    outcomes = []
    with progress("timing", turns, "turns") as advance:
        for context, batch_size in product(contexts, batch_sizes):
            time = partial(time_rounds, target, drafter, context=context, batch_size=batch_size, repeats=repeats)
            costs = _costs(partial(time, advance=advance), sampled)
            outcomes += [
                Outcome(one.temperature, one.rule, costs[one.rule], Payoff.of(one.tokens, costs[one.rule]))
                for one in acceptances
            ]
    return DrafterFigures(
        target=target.source,
        drafter=describe_mask(drafter) if isinstance(drafter, ComponentMask) else drafter.source,
        documents=len(next(iter(documents.values()))),
        acceptances=acceptances,
        outcomes=outcomes,
    )


@torch.inference_mode()
def acceptance_of(
    target: Model, drafter: Drafter, documents: Sequence[Document], temperature: float
) -> dict[str, list[list[float]]]:
    """The probability that each response token's draft is accepted, from teacher-forced passes of both.

    The target wrote the responses of the documents at this temperature, 0 for greedy decoding.

    Returns:
        By rule (`greedy` at temperature 0; above it `sampled`, sum_v min(p_v, q_v), and `likeliest`, p(argmax q)), for
        each document the acceptance of each response token.
    """
    draft, whole = Draft.of(target, drafter), Draft(target, target, ComponentMask())
    found: dict[str, list[list[float]]] = {rule: [] for rule in ([SAMPLED, LIKELIEST] if temperature else [GREEDY])}
    with progress(f"acceptance at {temperature:g}", len(documents), "documents") as advance:
        for document in documents:
            _check_room(draft, document)
            q = draft.response_logits(document)
            if temperature:
                p = whole.response_logits(document)
                if p.isnan().any():
                    raise RadistillError(f"{target.source}: the model's logits are NaN on {document.id}")
                both = [by_token(p, q, temperature, rule) for rule in (expected_acceptance, likeliest_acceptance)]
            else:
                response = torch.tensor(document.tokens[document.response_start :], device=q.device)
                both = [likeliest_is(q, response).double()]
            for rule, acceptance in zip(found, both, strict=True):
                found[rule].append(acceptance.tolist())
            advance()
    return found


def by_token(p: Tensor, q: Tensor, temperature: float, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What a rule says of two distributions of each token: in float64, a few tokens at a time to spare memory.

    Args:
        p: [tokens, vocab], logits of the target.
        q: [tokens, vocab], of the draft.
        temperature: above 0, by which both are divided.
        rule: from log p and log q, [some tokens, vocab], to [some tokens, ...].

    Returns:
        [tokens, ...].
    """
    parts = zip(p.split(_TOKENS_AT_ONCE), q.split(_TOKENS_AT_ONCE), strict=True)
    return torch.cat([rule(*((part.double() / temperature).log_softmax(dim=-1) for part in pair)) for pair in parts])


def _costs(time: Callable[..., RoundCosts], sampled: bool) -> dict[str, RoundCosts]:
    """Costs of rounds by rule."""
    greedy = time()
    if not sampled:
        return {GREEDY: greedy}
    both = time(sampled=True)
    # The likeliest token is drafted as in greedy decoding, and judged as samples are.
    pairs = zip(both.turns, greedy.turns, strict=True)
    likeliest = [replace(one, draft=other.draft, catch_up=other.catch_up) for one, other in pairs]
    return {GREEDY: greedy, SAMPLED: both, LIKELIEST: RoundCosts.mean(likeliest)}


def _check_room(draft: Draft, document: Document) -> None:
    longest, tokens = draft.model.context_length, len(document.tokens)
    if longest is not None and tokens > longest:
        raise RadistillError(
            f"drafter: {document.id} has {tokens} tokens with its answer, but the context of {draft.model.source} is "
            f"{longest}; shorten prompts or answers"
        )
