"""Lossless speculative decoding: a drafter proposes tokens, the target verifies several of them in one pass.

The drafter is the target itself under a mask (arXiv 2309.08168), or another model. In each round it proposes tokens,
the target reads them all at once, accepts the first ones and adds one token of its own, and both caches forget the
rest. Greedy, the text is the target's own; sampled, it has the target's distribution (arXiv 2211.17192).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.endings import end_tokens
from radistill.models.generation import check_prompts, check_sampling, evaluating
from radistill.models.loading import Model
from radistill.speculation.caches import RowCache, read_prompts, read_tokens, verifying
from radistill.speculation.drafters import Draft, Drafter
from radistill.speculation.drafting import Drafting
from radistill.speculation.sampling import Greedy, Proposal, Rule, Sampling
from radistill.speculation.states import History

DRAFT_CACHES = ("separate", "shared")


@dataclass(frozen=True)
class Decoded:
    """Responses, and how they came about.

    Attributes:
        responses: token ids of each response, in the order of the prompts.
        accepted_by_round: for each response, the number of accepted tokens in each round.
        drafted_by_round: for each response, the number of proposed tokens in each round.
        seconds: wall time of everything, the prompts included.
    """

    responses: list[list[int]]
    accepted_by_round: list[list[int]]
    drafted_by_round: list[list[int]]
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of all responses."""
        return sum(map(len, self.responses))

    @property
    def rounds(self) -> int:
        """Rounds of all responses."""
        return sum(map(len, self.accepted_by_round))

    @property
    def drafted(self) -> int:
        """Proposed tokens of all responses."""
        return sum(map(sum, self.drafted_by_round))

    @property
    def accepted(self) -> int:
        """Accepted tokens of all responses."""
        return sum(map(sum, self.accepted_by_round))

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens over proposed ones; 0.0 where nothing was proposed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Accepted tokens a round; 0.0 where there are no rounds."""
        return self.accepted / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all responses over `seconds`: the throughput tau of RAD."""
        return self.tokens / self.seconds


@torch.inference_mode()
def speculative_generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    drafter: Drafter,
    *,
    draft_length: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    draft_cache: str = "separate",
    confidence: float | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> Decoded:
    """Answer token sequences as `models.generation.generate` does, with drafts that the model verifies.

    Greedy responses are those of `generate` token for token, but where rounding decides between two equal logits.
    Sampled ones have its distribution; each depends on the seed and its place among the prompts alone, so the batch
    size has no influence on it. Prompts of a batch that are done make room for none until the batch is.

    Args:
        model: the target. No mask may be active.
        prompts: token ids, each at least one.
        drafter: a mask, which may be empty: the target drafts for itself without what it skips; or another model with
            the target's tokenizer. Its embedding may be padded to another size.
        draft_length: most tokens that are drafted in a round.
        max_new_tokens: longest response, in tokens.
        temperature: 0 takes the likeliest token, otherwise the logits are divided by it before sampling.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: for sampling.
        batch_size: prompts that run at once.
        draft_cache: "separate", or "shared" to draft on the target's keys, values and states; of a mask only.
        confidence: end a draft early, with the token whose distribution has no probability of this size.
        on_tokens: called in each round with the index of a prompt and its new tokens.

    Returns:
        Responses of 1 to `max_new_tokens` tokens, an end token kept, and the accepted tokens of every round.

    Raises:
        RadistillError: on an empty prompt, one that fills the context, a token that the network does not know, settings
            out of range, a mask that does not fit, a drafter with another tokenizer, texts in whose course LongRoPE
            changes the rotation, or logits of the target that are no numbers.
    """
    for name, value in {
        "draft_length": draft_length,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise RadistillError(f"generate: {name} is {value}, but it starts at 1")
    if draft_cache not in DRAFT_CACHES:
        raise RadistillError(f"generate: draft_cache is {draft_cache!r}; it can be {' or '.join(DRAFT_CACHES)}")
    if confidence is not None and not 0 <= confidence <= 1:
        raise RadistillError(f"generate: confidence is {confidence}; it is a probability, from 0 to 1")
    check_sampling(temperature, top_p)
    check_prompts(prompts, model.network)
    draft = Draft.of(model, drafter)
    if draft_cache == "shared" and draft.model is not model:
        raise RadistillError(
            "generate: draft_cache is 'shared', but another model cannot read the target's cache; let it be separate"
        )
    for reader in (model, draft.model):
        _check_room(prompts, reader)
        _check_rotation(prompts, max_new_tokens, reader)

    started = time.perf_counter()
    # Prompts of similar length run together, the longest first: what does not fit into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    texts = [_Text(index, list(map(int, prompts[index])), max_new_tokens) for index in order]
    stops = end_tokens(model)
    with evaluating(model.network, draft.model.network):
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            rule: Rule = Greedy()
            if temperature:
                seeds = [int(hash_json([seed, text.index])[:15], 16) for text in batch]
                rule = Sampling(temperature, top_p, seeds)
            prefixes = [text.tokens[:-1] for text in batch]
            drafting = Drafting(
                draft,
                rule,
                prompts=prefixes if draft_cache == "separate" else None,
                stops=stops,
                confidence=confidence,
            )
            _decode(model, batch, drafting, rule, draft_length, stops, on_tokens)
    texts.sort(key=lambda text: text.index)
    return Decoded(
        responses=[text.response for text in texts],
        accepted_by_round=[text.accepted for text in texts],
        drafted_by_round=[text.drafted for text in texts],
        seconds=time.perf_counter() - started,
    )


class _Text:
    """A prompt and the response that grows behind it."""

    def __init__(self, index: int, prompt: list[int], max_new_tokens: int) -> None:
        self.index = index
        self.tokens = prompt
        self.accepted: list[int] = []
        self.drafted: list[int] = []
        self._prompt_length = len(prompt)
        self._end = len(prompt) + max_new_tokens

    @property
    def response(self) -> list[int]:
        return self.tokens[self._prompt_length :]

    @property
    def room(self) -> int:
        """Tokens that the response may still grow by."""
        return self._end - len(self.tokens)

    def append(self, drafted: int, accepted: Sequence[int], following: int, stops: frozenset[int]) -> list[int]:
        """Take in what a round brought, and return it; after an end token and a full response nothing follows."""
        self.drafted.append(drafted)
        self.accepted.append(len(accepted))
        new = list(accepted)
        if len(new) < self.room and not (new and new[-1] in stops):
            new.append(following)
        self.tokens.extend(new)
        return new


def _decode(
    model: Model,
    texts: Sequence[_Text],
    drafting: Drafting,
    rule: Rule,
    draft_length: int,
    stops: frozenset[int],
    on_tokens: Callable[[int, list[int]], None] | None,
) -> None:
    """Play rounds until every text of a batch is finished."""
    cache = RowCache(model.network.config, len(texts))
    read_prompts(model, cache, [text.tokens[:-1] for text in texts])
    while texts:
        last = torch.tensor([text.tokens[-1:] for text in texts], device=model.network.device)
        proposal = drafting.propose(cache, last, [min(draft_length, text.room) for text in texts])
        accepted, following, history = verify(model, cache, last, proposal, rule)
        going_on = []
        for row, (text, tokens) in enumerate(zip(texts, proposal.tokens.tolist(), strict=True)):
            new = text.append(proposal.counts[row], tokens[: accepted[row]], following[row], stops)
            if on_tokens is not None:
                on_tokens(text.index, new)
            if text.room and new[-1] not in stops:
                going_on.append(row)
        if not going_on:
            return
        cache.roll_back([proposal.tokens.shape[1] - count for count in accepted], history)
        drafting.settle(proposal, accepted)
        if len(going_on) < len(texts):
            texts = [texts[row] for row in going_on]
            cache.select(going_on)
            drafting.select(going_on)
            rule.select(going_on)


def verify(
    model: Model, cache: RowCache, last: Tensor, proposal: Proposal, rule: Rule
) -> tuple[list[int], list[int], History]:
    """Let the target read the last token of the text, [batch, 1], and a proposal, and judge it.

    Returns:
        For each row the number of accepted tokens and the token that follows them, and what a roll-back needs.
    """
    with verifying(model, cache) as history:
        logits = read_tokens(model, cache, torch.cat([last, proposal.tokens], dim=1))
    if logits.isnan().any():
        raise RadistillError(f"{model.source}: the model's logits are NaN, so no token can be chosen")
    judgement = rule.judge(proposal, logits)
    return judgement.accepted.tolist(), judgement.following.tolist(), history


def _check_rotation(prompts: Sequence[Sequence[int]], max_new_tokens: int, model: Model) -> None:
    """Refuse texts in whose course the rotary embedding changes: what a cache holds of them would be rotated wrongly.

    LongRoPE (arXiv 2402.13753) rotates every token of a text by its length: up to the original context, or beyond.
    """
    rope = getattr(model.network.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope" or not prompts:
        return
    switch: int = rope["original_max_position_embeddings"]
    lengths = [len(prompt) for prompt in prompts]
    # The last token of a prompt is read with the first drafts.
    if min(lengths) - 1 <= switch < max(lengths) + max_new_tokens:
        raise RadistillError(
            f"generate: {model.source} rotates texts of more than {switch:,} tokens in another way (rope_type "
            f"longrope), which a cache cannot follow; keep each prompt and its response within {switch:,} tokens, "
            f"or let every prompt be longer than {switch + 1:,}"
        )


def _check_room(prompts: Sequence[Sequence[int]], model: Model) -> None:
    context = model.context_length
    for index, prompt in enumerate(prompts):
        if context is not None and len(prompt) >= context:
            raise RadistillError(
                f"generate: prompt {index} has {len(prompt)} tokens, but the context of {model.source} is {context}, "
                "and the response needs some of it; shorten the prompt"
            )
