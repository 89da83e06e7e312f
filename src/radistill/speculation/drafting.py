"""The drafter's half of a round: it proposes tokens, and learns which of them became text.

With a cache of its own a drafter reads its own keys and values all along, so what it proposes depends on the text
alone, and one teacher-forced pass predicts it (`speculation.prediction`). A masked target can draft on the target's
cache instead: that saves memory and a pass over the prompt, and it reads what the full model made of the text so far.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from radistill.models.anatomy import Component
from radistill.models.pictures import Images
from radistill.speculation.acceptance import confidences
from radistill.speculation.caches import RowCache, read_prompts, read_tokens
from radistill.speculation.drafters import Draft
from radistill.speculation.masks import masked
from radistill.speculation.sampling import Proposal, Rule
from radistill.speculation.states import History


class Drafting:
    """Drafts for a batch whose text grows by what the target accepts."""

    def __init__(
        self,
        draft: Draft,
        rule: Rule,
        *,
        prompts: Sequence[Sequence[int]] | None,
        images: Sequence[Images | None] = (),
        stops: frozenset[int],
        confidence: float | None,
    ) -> None:
        """Nothing is drafted yet, but the prompts are read.

        Args:
            draft, rule: what proposes tokens, and how it chooses them.
            prompts: the text so far, but for its last token, to be read into a cache of the draft's own; None to draft
                on copies of the target's cache, which only the masked target itself can.
            images: those of each prompt, where there are some.
            stops: tokens that end a response, and with it a proposal.
            confidence: a proposal ends with the first token whose distribution has no probability of this size (by the
                draft's logits as they are, whatever the temperature); None never ends it.
        """
        self._draft = draft
        self._rule = rule
        self._stops = stops
        self._confidence = confidence
        self._has_states = any(
            (layer, Component.SSM) not in draft.mask.skipped for layer in draft.model.anatomy.ssm_layers
        )
        self._history: History = {}  # after the last token of the text, and after each drafted one that was read
        self._behind: Tensor | None = None  # [batch, 1], a token of the text before the last that was not read
        self._own: RowCache | None = None
        if prompts is not None:
            self._own = RowCache(draft.model.network.config, len(prompts))
            with masked(draft.model, draft.mask):
                shown = [draft.prompt(*one) for one in zip_longest(prompts, images)]
                read_prompts(draft.model, self._own, [tokens for tokens, _ in shown], [seen for _, seen in shown])

    def propose(self, target: RowCache, last: Tensor, limits: Sequence[int]) -> Proposal:
        """Draft up to `limits[b]` tokens for row b.

        Args:
            target: the target's cache, which has read all of the text but its last token; it is left as it is.
            last: [batch, 1], the last token of the text.
            limits: most tokens that each row may propose, at least 1.
        """
        cache = target.fork() if self._own is None else self._own
        drafted: list[Tensor] = []
        distributions: list[Tensor] = []
        counts, open_rows = [0] * len(limits), list(range(len(limits)))
        with masked(self._draft.model, self._draft.mask):
            logits = self._read_text(cache, last)
            while open_rows:
                if drafted:
                    logits = self._read(cache, drafted[-1][:, None])
                token, distribution = self._rule.draft(logits)
                drafted.append(token)
                if distribution is not None:
                    distributions.append(distribution)
                open_rows = self._count(open_rows, counts, limits, token.tolist(), logits)
        probabilities = torch.stack(distributions, dim=1) if distributions else None
        return Proposal(torch.stack(drafted, dim=1), counts, probabilities)

    def settle(self, proposal: Proposal, accepted: Sequence[int]) -> None:
        """Forget what the target did not accept.

        The last drafted token was not read. Where every row accepts it, it is read together with the token that
        follows; where only some rows do, it is read now, so that no row has read more of its text than another.
        """
        if self._own is None:
            return
        last = proposal.tokens[:, -1:]
        drafted = proposal.tokens.shape[1]
        if all(count == drafted for count in accepted):
            self._behind = last
            return
        read = drafted - 1
        if any(count == drafted for count in accepted):
            with masked(self._draft.model, self._draft.mask):
                self._read(self._own, last)
            read = drafted
        self._own.roll_back([read - count for count in accepted], self._history)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch."""
        if self._own is not None:
            self._own.select(rows)
        if self._behind is not None:
            self._behind = self._behind[list(rows)]

    def _read_text(self, cache: RowCache, last: Tensor) -> Tensor:
        self._history.clear()
        behind, self._behind = self._behind, None
        if behind is not None and self._has_states:
            # Not every state-space block of transformers can read several tokens after a first one (see `caches`).
            self._read(cache, behind)
            self._history.clear()
        elif behind is not None:
            last = torch.cat([behind, last], dim=1)
        return self._read(cache, last)

    def _read(self, cache: RowCache, tokens: Tensor) -> Tensor:
        """Logits after the last of these tokens, [batch, vocab of the target]."""
        logits = self._draft.fit(read_tokens(self._draft.model, cache, tokens, keep=1)[:, -1])
        if self._has_states and self._own is not None:
            cache.note_states(self._history)
        return logits

    def _count(
        self, rows: Sequence[int], counts: list[int], limits: Sequence[int], tokens: Sequence[int], logits: Tensor
    ) -> list[int]:
        """Count the tokens that were just drafted, and return the rows that go on drafting."""
        # A distribution that is no number proposes nothing; the target then writes a token by itself.
        broken = logits.isnan().any(dim=-1).tolist()
        unsure = [False] * len(tokens)
        if self._confidence is not None:
            unsure = (confidences(logits) < self._confidence).tolist()
        going_on = []
        for row in rows:
            if broken[row]:
                continue
            counts[row] += 1
            if counts[row] < limits[row] and tokens[row] not in self._stops and not unsure[row]:
                going_on.append(row)
        return going_on
