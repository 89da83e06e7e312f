"""Whether engines serve a target with its drafter: the text stays the target's own, and drafts are accepted."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.export.engines.assisted import assisted
from radistill.export.engines.llama_cpp import LlamaCpp, as_gguf
from radistill.models.checkpoint import one_line
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer
from radistill.provenance import machine, versions
from radistill.speculation.decode import speculative_generate
from radistill.speculation.prediction import find_parting

NEAR_TIE = 1e-3
"""Where the target's two largest logits are nearer than this, an engine's rounding may take either."""

_LLAMA_CPP_PADDING = 128  # by how many rows the embeddings may differ there
_VLLM_METHODS = ("eagle3", "eagle-", "dflash", "dspark")  # in a path, these choose another way to draft


@dataclass(frozen=True)
class Served:
    """What one engine made of a pair.

    Attributes:
        engine, version: which.
        obstacle: why it cannot serve the pair; None where it did, or could as far as is known (vLLM is not run here).
        tokens: of the target's own greedy text.
        equal: those of them that the engine wrote with the drafter.
        near_ties: texts that part from it where two logits are within `NEAR_TIE`.
        different: texts that part from it elsewhere, because of the drafter.
        peculiar: texts that part from it, and that the engine writes without the drafter too. llama.cpp ends at tokens
            such as <|endoftext|> by their text, whatever the model's end tokens are.
        drafted, accepted, rounds: tokens proposed and accepted, passes of the target that judged them. At the end of a
            text engines count differently: some propose beyond it, or count its end token as the target's own.
        plain_tokens_per_second, tokens_per_second: without and with the drafter, on these prompts; None where every
            text has but the token that llama.cpp takes with the prompt.
    """

    engine: str
    version: str
    obstacle: str | None = None
    tokens: int = 0
    equal: int = 0
    near_ties: int = 0
    different: int = 0
    peculiar: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    plain_tokens_per_second: float | None = None
    tokens_per_second: float | None = None

    @property
    def ran(self) -> bool:
        """Whether it wrote anything."""
        return self.tokens > 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens over proposed ones."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True)
class DrafterCheck:
    """What every engine made of a pair, greedily."""

    target: str
    draft: str
    draft_length: int
    engines: list[Served]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with what it was made by."""
        return {**asdict(self), "versions": versions(), "machine": machine()}


@dataclass(frozen=True)
class _Pair:
    target: Model
    draft: Model
    prompts: Sequence[Sequence[int]]
    texts: Sequence[list[int]]  # the target's own greedy responses
    plain_speed: float | None  # tokens per second without the drafter
    draft_length: int
    count: int


def check_engines(
    target: Model,
    draft: Model,
    prompts: Sequence[Sequence[int]],
    *,
    draft_length: int = 4,
    max_new_tokens: int = 64,
) -> DrafterCheck:
    """Let every engine that is installed write greedily, with the drafter and without, and compare the texts.

    Args:
        target: verifies; for llama.cpp it is written as a GGUF file to a temporary folder.
        draft: another model with the same tokenizer.
        prompts: token ids.
        draft_length, max_new_tokens: tokens drafted in a round, and of the longest response; at least 1.

    Raises:
        RadistillError: for another tokenizer, without prompts, or on whatever `speculative_generate` refuses.
    """
    check_same_tokenizer(draft, target, ("drafter", "target"))
    if not prompts:
        raise RadistillError("drafter check: no prompts; give at least one")
    with progress("engines", len(_ENGINES)) as advance:
        started = time.perf_counter()
        texts = generate(target, prompts, max_new_tokens=max_new_tokens, batch_size=1, description=None)
        speed = sum(map(len, texts)) / (time.perf_counter() - started)
        pair = _Pair(target, draft, prompts, texts, speed, draft_length, max_new_tokens)
        found = []
        for engine in _ENGINES:
            found.append(engine(pair))
            advance(1, found[-1].engine)
    return DrafterCheck(target.source, draft.source, draft_length, [*found, _vllm(pair)])


def _ours(pair: _Pair) -> Served:
    decoded = speculative_generate(
        pair.target, pair.prompts, pair.draft, draft_length=pair.draft_length, max_new_tokens=pair.count
    )
    counts = (decoded.drafted, decoded.accepted, decoded.rounds)
    return _compared(pair, "radistill", versions()["radistill"], decoded.responses, counts, decoded.tokens_per_second)


def _transformers(pair: _Pair) -> Served:
    served = Served("transformers", transformers.__version__)
    for model, role in ((pair.target, "target"), (pair.draft, "drafter")):
        if model.anatomy.ssm_layers:
            return replace(served, obstacle=f"assisted generation takes no hybrid as {role}")
    found = [assisted(pair.target, pair.draft, prompt, pair.count, pair.draft_length) for prompt in pair.prompts]
    tokens, rounds = sum(len(one.tokens) for one in found), sum(one.rounds for one in found)
    # Each pass adds a token of the target's own.
    counts, seconds = (sum(one.drafted for one in found), tokens - rounds, rounds), sum(one.seconds for one in found)
    return _compared(pair, served.engine, served.version, [one.tokens for one in found], counts, tokens / seconds)


def _llama_cpp(pair: _Pair) -> Served:
    target, draft = pair.target, pair.draft
    version = ""
    if abs(target.anatomy.vocab_size - draft.anatomy.vocab_size) > _LLAMA_CPP_PADDING:
        sizes = f"{target.anatomy.vocab_size:,} and {draft.anatomy.vocab_size:,}"
        return Served("llama.cpp", version, f"embeddings of {sizes} rows are more than {_LLAMA_CPP_PADDING} apart")
    longest = max(map(len, pair.prompts)) + pair.count + pair.draft_length + 1
    answers: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as place:
        try:
            files = [
                as_gguf(model, Path(place) / f"{role}.gguf") for model, role in ((target, "target"), (draft, "draft"))
            ]
            for drafting in (None, files[1]):
                engine = LlamaCpp(files[0], longest, drafting, pair.draft_length, threads=torch.get_num_threads())
                version = engine.version
                answers.append([engine.greedy(list(prompt), pair.count) for prompt in pair.prompts])
                del engine  # a second target beside it would cost memory
        except RadistillError as error:
            return Served("llama.cpp", version, one_line(error))
    drafted, accepted = (sum(answer["timings"].get(key, 0) for answer in answers[1]) for key in _DRAFT_COUNTS)
    # With a drafter it hands out the token that ends a text, and without it does not.
    ends = end_tokens(target)
    plain, written, own = (
        [text[:-1] if text[-1:] and text[-1] in ends else text for text in texts]
        for texts in (*([answer["tokens"] for answer in each] for each in answers), pair.texts)
    )
    # It drafts for the first time after the first token.
    rounds = sum(len(answer["tokens"]) - 1 for answer in answers[1]) - accepted
    pair = replace(pair, texts=own, plain_speed=_speed(answers[0]))
    return _compared(pair, "llama.cpp", version, written, (drafted, accepted, rounds), _speed(answers[1]), plain)


_DRAFT_COUNTS = ("draft_n", "draft_n_accepted")
_ENGINES: tuple[Callable[[_Pair], Served], ...] = (_ours, _transformers, _llama_cpp)


def _vllm(pair: _Pair) -> Served:
    """What is known of vLLM's conditions; it wants an environment of its own, so that it is not run here."""
    target, draft = pair.target.anatomy, pair.draft.anatomy
    method = next((word for word in _VLLM_METHODS if word in pair.draft.source), None)
    obstacle = None
    if target.vocab_size != draft.vocab_size:
        obstacle = f"vocab_size differs: {target.vocab_size:,} and {draft.vocab_size:,}"
    elif draft.ssm_layers:
        obstacle = "a hybrid does not draft"
    elif method is not None:
        obstacle = f"{method!r} in the drafter's path stands for another way to draft; rename the folder"
    return Served("vllm", "", obstacle)


def _speed(answers: Sequence[dict[str, Any]]) -> float | None:
    """Tokens per second after the prompts, whose pass yields the first token of each; None if there are no others."""
    timings = [answer["timings"] for answer in answers]
    tokens = sum(timing["predicted_n"] - 1 for timing in timings)
    return 1000 * tokens / sum(timing["predicted_ms"] for timing in timings) if tokens > 0 else None


def _compared(
    pair: _Pair,
    engine: str,
    version: str,
    written: Sequence[list[int]],
    counts: tuple[int, int, int],
    speed: float | None,
    plain: Sequence[list[int]] | None = None,
) -> Served:
    """Count what was `written` with the drafter; `plain` is what the engine writes without it, where that was tried."""
    equal = ties = different = peculiar = 0
    for number, (prompt, own, text) in enumerate(zip(pair.prompts, pair.texts, written, strict=True)):
        parting = find_parting(pair.target, prompt, own, text)
        equal += len(own) if parting is None else parting.position
        if parting is None:
            continue
        if parting.margin < NEAR_TIE:
            ties += 1
        elif plain is not None and text == plain[number]:
            peculiar += 1
        else:
            different += 1
    total = sum(map(len, pair.texts))
    return Served(engine, version, None, total, equal, ties, different, peculiar, *counts, pair.plain_speed, speed)
