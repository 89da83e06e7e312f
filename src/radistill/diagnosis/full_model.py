"""What the full model says of a batch of calibration documents, kept so that drafts can be compared with it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from radistill.diagnosis.judgement import DraftPass
from radistill.errors import RadistillError
from radistill.models.divergence import kl_from, kl_of_logs
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Batch
from radistill.speculation.acceptance import expected_acceptance, likeliest_is
from radistill.speculation.masks import ComponentMask
from radistill.speculation.prefix import PrefixCache
from radistill.speculation.substitutes import Substitutes

_CHUNK_ON_CPU, _CHUNK_ON_GPU = 2**19, 2**26
"""Logits compared at once. On a CPU, 2 MiB in float32: a chunk and what is made of it stay in the processor's cache."""


class FullModel:
    """What the full model says of one batch, computed once, and drafts compared with it."""

    def __init__(self, model: Model, batch: Batch, substitutes: Substitutes | None) -> None:
        self.batch = batch
        self._network = model.network
        self._prefixes = PrefixCache(model, batch, substitutes)
        full = self._prefixes.run(ComponentMask(), keep=True)
        if not torch.isfinite(full.logits).all():
            raise RadistillError(f"{model.source}: the model's logits are NaN or infinite on the calibration data")
        self.tokens = len(full.rows)
        self._rows = full.rows.cpu()
        self._targets = full.targets
        self._best = full.logits.argmax(dim=-1)
        self._log_probabilities = torch.log_softmax(full.logits.float(), dim=-1)

    def draft_pass(self, mask: ComponentMask, near: ComponentMask) -> DraftPass:
        """A draft's pass over this batch."""
        if near != ComponentMask() and not self._prefixes.keeps(near):
            self._prefixes.run(near, keep=True)
        logits = self._prefixes.run(mask).logits
        parts = []
        with torch.inference_mode():
            for draft, best, target, written in self._chunks(logits):
                agreements, hits = likeliest_is(draft, best), likeliest_is(draft, written)
                log_probabilities = torch.log_softmax(draft.float(), dim=-1)
                nats = kl_of_logs(target, log_probabilities).double()
                parts.append((agreements, hits, nats, expected_acceptance(target, log_probabilities).double()))
        whole = [torch.cat(part).cpu() for part in zip(*parts, strict=True)]
        # By response: rows are in order, and none is without a response.
        agreements, hits, nats, accepted = (part.split(self._rows.bincount().tolist()) for part in whole)
        return DraftPass(
            agreements,
            [bool(one.all()) for one in hits],
            [one.sum().item() for one in nats],
            [one.sum().item() for one in accepted],
        )

    def divergence(self) -> Tensor:
        """KL(target || model as it is now), summed over response tokens, with its gradient."""
        with torch.enable_grad():
            logits = response_logits(self._network, self.batch).logits
            return torch.stack([kl_from(target, draft).sum() for draft, _, target, _ in self._chunks(logits)]).sum()

    def _chunks(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A few tokens of the draft's logits at a time, with the target's best tokens and log-probabilities, and the
        tokens that the response has."""
        numbers = _CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK_ON_GPU
        chunk = max(1, numbers // logits.shape[-1])
        others = (self._best, self._log_probabilities, self._targets)
        return zip(logits.split(chunk), *(other.split(chunk) for other in others), strict=True)
