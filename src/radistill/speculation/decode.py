"""Lossless speculative decoding: a drafter proposes tokens, the target verifies several of them in one pass.

The drafter is the target itself under a mask (arXiv 2309.08168), or another model. In each round it proposes tokens,
the target reads them all at once, accepts the first ones and adds one token of its own, and both caches forget the
rest. Greedy, the text is the target's own; sampled, it has the target's distribution (arXiv 2211.17192).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.endings import end_tokens
from radistill.models.generation import check_prompts, check_sampling, check_shown, evaluating
from radistill.models.loading import Model
from radistill.models.pictures import Images
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

    @property
    def summary(self) -> str:
        """In one line, for a person."""
        return (
            f"{self.tokens} tokens in {self.seconds:.2f} s, {self.tokens_per_second:.1f} tokens/s; "
            f"accepted {self.accepted} of {self.drafted} proposed ({self.acceptance_rate:.0%}), "
            f"{self.mean_accepted_length:.2f} a round in {self.rounds} rounds"
        )


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
    images: Sequence[Images | None] | None = None,
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
        images: for each prompt, what its image tokens stand for; None where none has images. They run one at a time. A
            drafter that reads no images drafts without them.

    Returns:
        Responses of 1 to `max_new_tokens` tokens, an end token kept, and the accepted tokens of every round.

    Raises:
        RadistillError: on an empty prompt, one that fills the context, a token that the network does not know, settings
            out of range, a mask that does not fit, a drafter with another tokenizer, texts in whose course LongRoPE
            changes the rotation, or logits of the target that are no numbers.
    """
    if draft_cache not in DRAFT_CACHES:
        raise RadistillError(f"generate: draft_cache is {draft_cache!r}; it can be {' or '.join(DRAFT_CACHES)}")
    draft = Draft.of(model, drafter)
    counts = {"draft_length": draft_length, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    check_request((model, draft.model), prompts, counts, temperature, top_p, confidence)
    shown = check_shown(model, prompts, images)
    if batch_size > 1 and any(one is not None for one in shown):
        raise RadistillError(f"generate: batch_size is {batch_size}, but prompts with images run one at a time; set 1")
    if draft_cache == "shared" and draft.model is not model:
        raise RadistillError(
            "generate: draft_cache is 'shared', but another model cannot read the target's cache; let it be separate"
        )

    started = time.perf_counter()
    # Prompts of similar length run together, the longest first: what does not fit into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    texts = [Text(index, prompts[index], max_new_tokens, shown[index]) for index in order]
    stops = end_tokens(model)
    with evaluating(model.network, draft.model.network):
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            rule = rule_of(temperature, top_p, [[seed, text.index] for text in batch])
            prefixes = [text.tokens[:-1] for text in batch]
            drafting = Drafting(
                draft,
                rule,
                prompts=prefixes if draft_cache == "separate" else None,
                images=[text.images for text in batch],
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


class Text:
    """A prompt and the response that grows behind it."""

    def __init__(self, index: int, prompt: Sequence[int], max_new_tokens: int, images: Images | None = None) -> None:
        self.index = index
        self.images = images
        self.tokens = list(map(int, prompt))
        self.accepted: list[int] = []  # tokens in each round
        self.drafted: list[int] = []
        self.branched: list[int] = []  # where branches are drafted: those of all of them
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
    texts: Sequence[Text],
    drafting: Drafting,
    rule: Rule,
    draft_length: int,
    stops: frozenset[int],
    on_tokens: Callable[[int, list[int]], None] | None,
) -> None:
    """Play rounds until every text of a batch is finished."""
    cache = RowCache(model.network.config, len(texts))
    read_prompts(model, cache, [text.tokens[:-1] for text in texts], [text.images for text in texts])
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
    logits, history = read_proposal(model, cache, last, proposal.tokens)
    judgement = rule.judge(proposal, logits)
    return judgement.accepted.tolist(), judgement.following.tolist(), history


def read_proposal(model: Model, cache: RowCache, last: Tensor, tokens: Tensor) -> tuple[Tensor, History]:
    """Let the target read the last token of the text, [batch, 1], and proposed ones, [batch, drafted].

    Returns:
        Logits, [batch, drafted + 1, vocab], and what a roll-back needs.

    Raises:
        RadistillError: if a logit is NaN.
    """
    with verifying(model, cache) as history:
        logits = read_tokens(model, cache, torch.cat([last, tokens], dim=1))
    if logits.isnan().any():
        raise RadistillError(f"{model.source}: the model's logits are NaN, so no token can be chosen")
    return logits, history


def rule_of(temperature: float, top_p: float, seeds: Sequence[object]) -> Rule:
    """How tokens are chosen: greedily at temperature 0, else sampled, each row with a seed made of its plain data."""
    if not temperature:
        return Greedy()
    return Sampling(temperature, top_p, [int(hash_json(seed)[:15], 16) for seed in seeds])


def check_request(
    models: tuple[Model, Model],
    prompts: Sequence[Sequence[int]],
    counts: Mapping[str, int],
    temperature: float,
    top_p: float,
    confidence: float | None,
) -> None:
    """Refuse what cannot be decoded.

    Args:
        models: the target and what drafts, which may be the target.
        prompts: token ids.
        counts: settings that start at 1, by name, `max_new_tokens` among them.
        temperature, top_p, confidence: as in `speculative_generate`.

    Raises:
        RadistillError: on settings out of range, tokens that the target does not know, prompts that fill a model's
            context, and texts in whose course LongRoPE changes the rotation.
    """
    for name, value in counts.items():
        if value < 1:
            raise RadistillError(f"generate: {name} is {value}, but it starts at 1")
    if confidence is not None and not 0 <= confidence <= 1:
        raise RadistillError(f"generate: confidence is {confidence}; it is a probability, from 0 to 1")
    check_sampling(temperature, top_p)
    check_prompts(prompts, models[0].network)
    lengths = [len(prompt) for prompt in prompts]
    for model in models:
        for index, length in enumerate(lengths):
            if model.context_length is not None and length >= model.context_length:
                raise RadistillError(
                    f"generate: prompt {index} has {length} tokens, but the context of {model.source} is "
                    f"{model.context_length}, and the response needs some of it; shorten the prompt"
                )
        # LongRoPE (arXiv 2402.13753) rotates every token of a text by the text's length: up to the original context, or
        # beyond. What a cache holds would be rotated wrongly. The last token of a prompt is read with the first drafts.
        rope = getattr(model.network.config.get_text_config(), "rope_parameters", None) or {}
        switch = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
        if switch and lengths and min(lengths) - 1 <= switch < max(lengths) + counts["max_new_tokens"]:
            raise RadistillError(
                f"generate: {model.source} rotates texts of more than {switch:,} tokens in another way (rope_type "
                f"longrope), which a cache cannot follow; keep each prompt and its response within {switch:,} tokens, "
                f"or let every prompt be longer than {switch + 1:,}"
            )
