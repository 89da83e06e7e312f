"""What the full model says of a batch of calibration documents, kept or made again so that drafts can be compared."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from radistill.diagnosis.judgement import DraftPass
from radistill.errors import RadistillError
from radistill.models.anatomy import Anatomy
from radistill.models.divergence import kl_from, kl_of_logs
from radistill.models.loading import Model
from radistill.models.logits import CHUNK_NUMBERS, chunks, response_logits
from radistill.models.sequences import Batch
from radistill.speculation.acceptance import expected_acceptance, likeliest_is
from radistill.speculation.masks import ComponentMask
from radistill.speculation.prefix import PrefixCache
from radistill.speculation.substitutes import Substitutes

_CHUNK_ON_CPU = 2**19
"""Logits compared at once on a CPU, 2 MiB in float32: what is made of them stays in the processor's cache."""


class Room(NamedTuple):
    """How much of the full model a search remembers; what it does not is computed again, to the same last bit.

    Attributes:
        every: of how many layers one has its input kept; a draft starts at the last of these below its first change.
        states: bytes of these hidden states, of the full model and of the set that a search stays near.
        logits: bytes left for log-probabilities.
    """

    every: int
    states: int
    logits: int


def room_for(anatomy: Anatomy, number: int, tokens: int, gib: float) -> Room:
    """What fits into memory: hidden states first, because they save most.

    Args:
        anatomy: of the model.
        number: bytes of a number of its hidden states.
        tokens: of all batches, padding included.
        gib: room for all.
    """
    room, a_layer = int(gib * 2**30), 2 * tokens * anatomy.hidden_size * number
    every = math.ceil(anatomy.num_layers / max(1, min(room // a_layer, anatomy.num_layers)))
    states = math.ceil(anatomy.num_layers / every) * a_layer
    return Room(every, states, max(0, room - states))


def full_models(
    model: Model, batches: Sequence[Batch], substitutes: Substitutes | None, gib: float
) -> list["FullModel"]:
    """The full model's pass over each batch, with as much of it remembered as there is room for."""
    tokens = sum(batch.input_ids.numel() for batch in batches)
    every, _, left = room_for(model.anatomy, model.network.dtype.itemsize, tokens, gib)
    made = []
    for batch in batches:
        needed = 4 * model.anatomy.vocab_size * int(batch.response_mask.sum())
        made.append(FullModel(model, batch, substitutes, every=every, keeps_logits=needed <= left))
        left -= needed if needed <= left else 0
    return made


class FullModel:
    """What the full model says of one batch, and drafts compared with it."""

    def __init__(
        self,
        model: Model,
        batch: Batch,
        substitutes: Substitutes | None,
        *,
        every: int = 1,
        keeps_logits: bool = True,
    ) -> None:
        """Run the full model.

        Args:
            model: the model.
            batch: documents.
            substitutes: as in `Trials`.
            every: see `Room`.
            keeps_logits: whether log-probabilities are kept, [tokens, vocab] in float32. If not, they are made of the
                last hidden states, [tokens, hidden], for each draft.

        Raises:
            RadistillError: if its logits are not finite.
        """
        self.model, self.batch, self.substitutes = model, batch, substitutes
        self._prefixes = PrefixCache(model, batch, substitutes, every)
        self._states = self._prefixes.run(ComponentMask(), keep=True)
        self._counts = batch.response_mask[:, 1:].sum(dim=1).tolist()
        self._chunks = list(chunks(sum(self._counts), self._states.vocabulary))
        self._logs: Tensor | None = None
        best, kept = [], []
        for rows in self._chunks:
            with torch.no_grad():
                logits = self._states.logits(rows)
            if not torch.isfinite(logits).all():
                raise RadistillError(f"{model.source}: the model's logits are NaN or infinite on the calibration data")
            best.append(logits.argmax(dim=-1))
            if keeps_logits:
                kept.append(torch.log_softmax(logits.float(), dim=-1))
        self._best = torch.cat(best)
        if keeps_logits:
            self._logs = torch.cat(kept)

    def draft_pass(self, mask: ComponentMask, near: ComponentMask) -> DraftPass:
        """A draft's pass over this batch."""
        if near != ComponentMask() and not self._prefixes.keeps(near):
            self._prefixes.run(near, keep=True)
        states = self._prefixes.run(mask)
        parts = []
        with torch.inference_mode():
            for rows in self._chunks:
                for draft, best, target, written in self._pieces(rows, states.logits(rows)):
                    agreements, hits = likeliest_is(draft, best), likeliest_is(draft, written)
                    logs = torch.log_softmax(draft.float(), dim=-1)
                    nats = kl_of_logs(target, logs).double()
                    parts.append((agreements, hits, nats, expected_acceptance(target, logs).double()))
        whole = [torch.cat(part).cpu() for part in zip(*parts, strict=True)]
        # By response: tokens are row after row, and no row is without a response.
        agreements, hits, nats, accepted = (part.split(self._counts) for part in whole)
        return DraftPass(
            agreements,
            [bool(one.all()) for one in hits],
            [one.sum().item() for one in nats],
            [one.sum().item() for one in accepted],
        )

    def divergence(self) -> Tensor:
        """KL(target || model as it is now), summed over response tokens, with its gradient."""
        with torch.enable_grad():
            logits = response_logits(self.model.network, self.batch).logits
            pieces = (piece for rows in self._chunks for piece in self._pieces(rows, logits[rows]))
            return torch.stack([kl_from(target, draft).sum() for draft, _, target, _ in pieces]).sum()

    def _pieces(self, rows: slice, draft: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The draft's logits of a slice, a few tokens at a time, with the target's best tokens and log-probabilities,
        and the tokens that the response has."""
        if self._logs is not None:
            target = self._logs[rows]
        else:
            with torch.no_grad():
                target = torch.log_softmax(self._states.logits(rows).float(), dim=-1)
        numbers = _CHUNK_ON_CPU if draft.device.type == "cpu" else CHUNK_NUMBERS
        piece = max(1, numbers // draft.shape[-1])
        others = (self._best[rows], target, self._states.targets[rows])
        return zip(draft.split(piece), *(other.split(piece) for other in others), strict=True)
