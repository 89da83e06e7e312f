"""Judging sets of skipped layers, once each."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from radistill.diagnosis.objectives import OBJECTIVES, DraftPass
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.divergence import forward_kl
from radistill.models.loading import Model
from radistill.models.sequences import Document, batches, collate
from radistill.speculation.acceptance import greedy_agreement
from radistill.speculation.masks import ComponentMask
from radistill.speculation.prefix import PrefixCache


@dataclass(frozen=True)
class Trial:
    """One judged set.

    Attributes:
        layers: the layers whose attention the draft skipped, sorted.
        value: the objective; larger is better.
    """

    layers: tuple[int, ...]
    value: float


class Trials:
    """Judges sets of skipped attention layers on calibration documents.

    A set seen before costs nothing, also in a later process: every judgement is appended to a file, so that a search
    that was killed replays what it knows and goes on. What sets share is computed once (see `PrefixCache`).
    """

    def __init__(
        self,
        model: Model,
        documents: Sequence[Document],
        objective: str,
        *,
        tokens_per_batch: int = 2048,
        folder: Path | None = None,
    ) -> None:
        """Run the full model over the documents.

        Args:
            model: the target model.
            documents: calibration documents, best with responses written by the model itself.
            objective: a name in `OBJECTIVES`.
            tokens_per_batch: padded tokens in one forward pass.
            folder: where judgements are kept; None keeps them in memory only.

        Raises:
            RadistillError: for an unknown objective, no documents, or a model whose logits are not numbers.
        """
        if objective not in OBJECTIVES:
            raise RadistillError(
                f"diagnose.objective is {objective!r}, but it must be one of {', '.join(sorted(OBJECTIVES))}"
            )
        if not documents:
            raise RadistillError("data.calibration: no documents to calibrate on; ask for at least one")
        self.model = model
        self.objective = objective
        self.documents = documents
        self.tokens_per_batch = tokens_per_batch
        self.calibration_hash = hash_json([[list(d.tokens), d.response_start] for d in documents])
        self.history: list[Trial] = []
        self.forward_tokens = 0.0
        self._known: dict[tuple[int, ...], tuple[float, float]] = {}
        self._file = self._open(folder)
        self._prefixes = []
        for group in batches(documents, tokens_per_batch):
            batch = collate(group, model.pad_token_id, model.network.device)
            self._prefixes.append(PrefixCache(model, batch))
            self.forward_tokens += float(batch.attention_mask.sum())
        if any(not torch.isfinite(prefix.full.logits).all() for prefix in self._prefixes):
            raise RadistillError(f"{model.source}: the model's logits are NaN or infinite on the calibration data")

    def run(self, layers: Iterable[int]) -> DraftPass:
        """One pass of the draft that skips the attention of `layers`, without looking it up."""
        mask = ComponentMask.attention(layers)
        agreements: list[torch.Tensor] = []
        total, tokens = 0.0, 0
        for prefix in self._prefixes:
            draft = prefix.run(mask)
            agree = greedy_agreement(draft.logits, prefix.full.logits)
            agreements.extend(agree[draft.rows == row] for row in draft.rows.unique())
            total += forward_kl(prefix.full.logits, draft.logits).double().sum().item()
            tokens += len(agree)
            self.forward_tokens += prefix.tokens_per_run(mask)
        return DraftPass(agreements, total / tokens)

    def value(self, layers: Iterable[int]) -> float:
        """The objective for the draft that skips the attention of `layers`; minus infinity becomes a large negative."""
        key = tuple(sorted(layers))
        if key not in self._known:
            before = self.forward_tokens
            value = OBJECTIVES[self.objective](self.run(key))
            # A draft whose logits overflow is as bad as can be, and a search must be able to compare it.
            value = value if math.isfinite(value) else -1e6
            self._remember(key, value, self.forward_tokens - before)
        elif all(trial.layers != key for trial in self.history):
            self.forward_tokens += self._known[key][1]  # an earlier process spent them on this search
        value = self._known[key][0]
        self.history.append(Trial(key, value))
        return value

    def learn(self, layers: Iterable[int], value: float, forward_tokens: float) -> None:
        """Take over a judgement that another process made, so that `value` need not repeat it."""
        self._known.setdefault(tuple(sorted(layers)), (value, forward_tokens))

    def _open(self, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        key = hash_json([self.model.fingerprint, self.calibration_hash, self.objective])
        path = folder / f"trials-{key[:12]}.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that was being written when an earlier run was killed
                self._known[tuple(row["layers"])] = (row["value"], row["forward_tokens"])
        return path

    def _remember(self, layers: tuple[int, ...], value: float, forward_tokens: float) -> None:
        self._known[layers] = (value, forward_tokens)
        if self._file is None:
            return
        row = json.dumps({"layers": layers, "value": value, "forward_tokens": forward_tokens})
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(row + "\n")
            handle.flush()
            os.fsync(handle.fileno())
