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
        self._best = full.logits.argmax(dim=-1)
        self._log_probabilities = torch.log_softmax(full.logits.float(), dim=-1)

    def draft_pass(self, mask: ComponentMask, near: ComponentMask) -> DraftPass:
        """A draft's pass over this batch, with KL and acceptance as sums over its response tokens."""
        if near != ComponentMask() and not self._prefixes.keeps(near):
            self._prefixes.run(near, keep=True)
        logits = self._prefixes.run(mask).logits
        agreements, kl, accepted = [], [], []
        with torch.inference_mode():
            for draft, best, target in self._chunks(logits):
                agreements.append(likeliest_is(draft, best))
                log_probabilities = torch.log_softmax(draft.float(), dim=-1)
                kl.append(kl_of_logs(target, log_probabilities))
                accepted.append(expected_acceptance(target, log_probabilities))
        agree = torch.cat(agreements).cpu()
        sums = [torch.cat(parts).double().sum().item() for parts in (kl, accepted)]
        return DraftPass([agree[self._rows == row] for row in self._rows.unique()], *sums)

    def divergence(self) -> Tensor:
        """KL(target || model as it is now), summed over response tokens, with its gradient."""
        with torch.enable_grad():
            logits = response_logits(self._network, self.batch).logits
            return torch.stack([kl_from(target, draft).sum() for draft, _, target in self._chunks(logits)]).sum()

    def _chunks(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A few tokens of the draft's logits at a time, with the target's best tokens and log-probabilities."""
        numbers = _CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK_ON_GPU
        chunk = max(1, numbers // logits.shape[-1])
        return zip(logits.split(chunk), self._best.split(chunk), self._log_probabilities.split(chunk), strict=True)
