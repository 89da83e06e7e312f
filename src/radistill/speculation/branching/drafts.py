"""What the draft process does: it continues several branches of a text, and learns which of them became text.

Two caches of the drafter stand for the text. The *root* has read what is certain. The *trunk* has also read the
proposed tokens, which the target is reading; branches grow from it as rows of a batch, each with a head of its own.
"""

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from radistill.models.loading import Model
from radistill.speculation.acceptance import confidences
from radistill.speculation.branching.rule import heads_of
from radistill.speculation.caches import RowCache, read_prompts, read_tokens, verifying
from radistill.speculation.decode import rule_of
from radistill.speculation.drafters import fitted
from radistill.speculation.states import History


@dataclass(frozen=True)
class Manner:
    """How a drafter drafts for a target.

    Attributes:
        vocab_size: of the target.
        stops: tokens that end a response, and with it a branch.
        temperature: that tokens are drawn at; 0 takes the likeliest.
        top_p: as in `models.generation.generate`.
        confidence: a branch ends before a place where no token has this probability; None lets it go on.
    """

    vocab_size: int
    stops: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    confidence: float | None = None


@dataclass(frozen=True)
class Order:
    """How the text goes on, and what is to be drafted after it.

    Attributes:
        start: "branch" if a branch was kept; else what `tokens` follow: "nothing", the "root" or the "trunk".
        tokens: of the text.
        branch: the branch that was kept.
        proposed: tokens of its continuation that the target reads now; the next branch point comes after them.
        branches: most branches there, as `rule.branch_count` has it; 0 for none.
        longest: most tokens that follow the head of each.
        seed: plain data that sampling is seeded with.
        count: so many branches, whatever the confidence.
    """

    start: Literal["nothing", "root", "trunk", "branch"]
    tokens: tuple[int, ...] = ()
    branch: int = 0
    proposed: int = 0
    branches: int = 0
    longest: int = 0
    seed: tuple[int, ...] = ()
    count: int | None = None


class Drafted(NamedTuple):
    """What was drafted.

    Attributes:
        heads: first token of each branch.
        continuations: tokens that follow each head.
        confidences: of each branch, the drafter's largest probability at the place of each token of the continuation
            and at the place after them.
        logits: [proposed, vocab] in float32, which the proposed tokens were drawn from; None at temperature 0.
        seconds: of taking the text in, and of drafting.
    """

    heads: list[int]
    continuations: list[list[int]]
    confidences: list[list[float]]
    logits: np.ndarray | None
    seconds: tuple[float, float]

    @property
    def tokens(self) -> int:
        """Drafted tokens of all branches."""
        return len(self.heads) + sum(map(len, self.continuations))


class Drafts:
    """The drafter's half of decoding, for one text at a time."""

    def __init__(self, model: Model, manner: Manner) -> None:
        """Nothing is read yet."""
        self._model, self._manner = model, manner
        self._root = self._trunk = self._branches = RowCache(model.network.config, 1)
        self._history: History = {}  # after each token that the branches have read
        self._logits = torch.empty(0)  # [branches, read, vocab], after each of these tokens
        self._next = torch.empty(0)  # [vocab], at the branch point

    @torch.inference_mode()
    def draft(self, order: Order) -> Drafted:
        """Take in how the text goes on, and draft branches after it."""
        started = time.perf_counter()
        logits = self._continue_text(order)
        settled = time.perf_counter()
        heads = heads_of(self._next, order.branches, order.count)
        continuations, sure = self._grow(heads, order) if heads else ([], [])
        seconds = (settled - started, time.perf_counter() - settled)
        sent = logits.float().cpu().numpy() if self._manner.temperature else None
        return Drafted(heads, continuations, sure, sent, seconds)

    def _continue_text(self, order: Order) -> Tensor:
        """Bring root and trunk to the next branch point. Returns [proposed, vocab], the proposed tokens' logits."""
        if order.start == "branch":
            read = self._logits.shape[1]
            self._root = self._row(order.branch, read - 1)
            self._trunk = self._row(order.branch, read - 1 - order.proposed)
            self._next = self._logits[order.branch, order.proposed]
            return self._logits[order.branch, : order.proposed]
        cache, tokens = self._trunk if order.start == "trunk" else self._root, order.tokens
        if order.start == "nothing":
            cache = RowCache(self._model.network.config, 1)
            read_prompts(self._model, cache, [tokens[:-1]])
            tokens = tokens[-1:]
        with verifying(self._model, cache) as history:
            self._next = self._read(cache, torch.tensor([tokens]))[0]
        cache.roll_back([0], history)
        self._root = self._trunk = cache
        return self._next[None, :][:0]

    def _grow(self, heads: list[int], order: Order) -> tuple[list[list[int]], list[list[float]]]:
        manner, rows = self._manner, range(len(heads))
        rule = rule_of(manner.temperature, manner.top_p, [[*order.seed, row] for row in rows])
        self._branches = self._trunk.fork()
        self._branches.select([0 for _ in rows])
        self._history.clear()
        continuations: list[list[int]] = [[] for _ in rows]
        sure: list[list[float]] = [[] for _ in rows]
        found, tokens, going_on = [], torch.tensor(heads), list(rows)
        while going_on:
            logits = self._read(self._branches, tokens[:, None])
            self._branches.note_states(self._history)
            found.append(logits)
            drawn, _ = rule.draft(logits)
            for row, one in enumerate(confidences(logits).tolist()):
                if row in going_on:
                    sure[row].append(one)
                    # A comparison with NaN is false: such a distribution proposes nothing.
                    certain = one >= (manner.confidence or 0.0)
                    ended = int(tokens[row]) in manner.stops or len(continuations[row]) == order.longest
                    if certain and not ended:
                        continuations[row].append(int(drawn[row]))
                    else:
                        going_on.remove(row)
            tokens = drawn.cpu()
        self._logits = torch.stack(found, dim=1)
        return continuations, sure

    def _row(self, row: int, dropped: int) -> RowCache:
        """What one branch has read, but for its last tokens."""
        cache = self._branches.fork()
        cache.roll_back([dropped] * len(cache.lengths), self._history)
        cache.select([row])
        return cache

    def _read(self, cache: RowCache, tokens: Tensor) -> Tensor:
        """Logits after the last of the tokens, [rows, vocab of the target]."""
        return fitted(read_tokens(self._model, cache, tokens, keep=1)[:, -1], self._manner.vocab_size)
