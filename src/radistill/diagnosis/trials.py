"""Judging sets of layers that are skipped or replaced, once each."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from radistill.batch_log import append_batch, read_batches
from radistill.diagnosis.full_model import FullModel
from radistill.diagnosis.judgement import DraftPass, Judgement
from radistill.diagnosis.objectives import Objective
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.models.sequences import Batch, Document, batches, collate, hash_documents
from radistill.speculation.masks import ComponentMask
from radistill.speculation.presets import describe_mask
from radistill.speculation.substitutes import Substitutes
from radistill.speculation.throughput import measure_throughput

_MOST_PADDING = 0.05


class OutOfTokens(Exception):
    """A search has spent the forward tokens that it was allowed."""


@dataclass(frozen=True)
class Trial:
    """One judged set.

    Attributes:
        layers: the layers whose attention the draft did without, sorted.
        value: the objective; larger is better.
    """

    layers: tuple[int, ...]
    value: float


class Trials:
    """Judges sets of layers whose attention is skipped or replaced by other blocks, on calibration documents.

    Where other components of the layers go too, drafts skip these as well.

    A set seen before costs nothing, also in a later process and for another objective: every judgement is appended to a
    file, so that a search that was killed replays what it knows and goes on. What sets share is computed once (see
    `PrefixCache`).

    `forward_tokens` counts what the search at hand would have cost in a process of its own: calibration tokens through
    the whole model, where a pass over the upper half of the layers counts half. It is a function of the sets asked for
    and of their order alone, so that a search that stops by it stops at the same place when it is resumed.
    `seconds_a_pass` is what the full model took.
    """

    def __init__(
        self,
        model: Model,
        documents: Sequence[Document],
        objective: Objective,
        *,
        retrieval: Sequence[Document] = (),
        tokens_per_batch: int = 2048,
        folder: Path | None = None,
        substitutes: Substitutes | None = None,
        components: Sequence[Component] = (Component.ATTENTION,),
        parts: Sequence[tuple[int, Component]] = (),
    ) -> None:
        """Run the full model over the documents.

        Args:
            model: the target model.
            documents: calibration documents, best with responses written by the model itself.
            objective: what `value` is.
            retrieval: texts whose response is to be found again, see `data.retrieval`.
            tokens_per_batch: padded tokens in one forward pass.
            folder: where judgements are kept; None keeps them in memory only.
            substitutes: what runs in place of each attention of a set; None skips it.
            components: what goes of each layer of a set.
            parts: where given, sets are not of layers but of places in this list, and what goes is the component of
                the layer at each.

        Raises:
            RadistillError: for no documents or one beyond the model's context, for a model whose logits are not
                numbers.
        """
        if not documents:
            raise RadistillError("data.calibration: no documents to calibrate on; ask for at least one")
        context = model.context_length
        for document in (*documents, *retrieval):
            if context is not None and len(document.tokens) > context:
                raise RadistillError(
                    f"calibration document {document.id} has {len(document.tokens)} tokens, but the model's context is "
                    f"{context}; shorten it, or set data.max_length"
                )
        self.model = model
        self.objective = objective
        self.documents = documents
        self.retrieval = retrieval
        self.substitutes = substitutes
        self.components = tuple(components)
        self.parts = tuple(parts)
        self.tokens_per_batch = tokens_per_batch
        self.calibration_hash = hash_documents((*documents, *retrieval))
        self.calibration_tokens = sum(len(document.tokens) for document in (*documents, *retrieval))
        self._known: dict[tuple[int, ...], Judgement] = {}
        self._file = self._open(folder)
        started = time.perf_counter()
        self._full, self._retrieval = (
            [
                FullModel(model, collate(group, model.pad_token_id, model.network.device), substitutes)
                for group in batches(texts, tokens_per_batch, _MOST_PADDING)
            ]
            for texts in (documents, retrieval)
        )
        self.seconds_a_pass = time.perf_counter() - started
        self.start()

    def start(self, limit: float | None = None) -> None:
        """Begin a search: nothing is asked for or spent yet, apart from the pass of the full model.

        Args:
            limit: forward tokens after which `judge` raises `OutOfTokens`; None is no limit.
        """
        self.history: list[Trial] = []
        self.forward_tokens = float(self.calibration_tokens)
        self.limit = limit
        self.listener: Callable[[Trial], None] | None = None
        self._seen: set[tuple[int, ...]] = set()
        self._near = ComponentMask()

    @property
    def identity(self) -> list[str]:
        """What a judgement depends on beside its set: the model, the documents, what goes and what replaces it."""
        blocks = [] if self.substitutes is None else [self.substitutes.fingerprint]
        goes = () if self.components == (Component.ATTENTION,) else self.components
        parts = [f"{component}:{layer}" for layer, component in self.parts]
        return [self.model.fingerprint, self.calibration_hash, *blocks, *goes, *parts]

    @property
    def candidates(self) -> Sequence[int]:
        """What sets may be of: the layers with attention, or the places of `parts`."""
        return range(len(self.parts)) if self.parts else self.model.anatomy.attention_layers

    def mask(self, layers: Iterable[int]) -> ComponentMask:
        """What the draft without `layers` skips."""
        if self.parts:
            return ComponentMask(frozenset(self.parts[place] for place in layers))
        return ComponentMask.of(layers, self.components)

    def called(self, layer: int) -> str:
        """A candidate in words."""
        return describe_mask(self.mask([layer])) if self.parts else f"layer {layer}"

    @property
    def left(self) -> float:
        """Forward tokens that the search may still spend; infinite without a limit."""
        return float("inf") if self.limit is None else self.limit - self.forward_tokens

    def run(self, layers: Iterable[int]) -> DraftPass:
        """One pass of the draft without the attention of `layers`, without looking it up or counting it."""
        return self._pass(self._full, layers)

    def run_retrieval(self, layers: Iterable[int]) -> DraftPass | None:
        """The same over the retrieval texts; None if there are none."""
        return self._pass(self._retrieval, layers) if self._retrieval else None

    def _pass(self, batches: Sequence[FullModel], layers: Iterable[int]) -> DraftPass:
        mask = self.mask(layers)
        passes = [full.draft_pass(mask, self._near) for full in batches]
        figures = ([getattr(one, field.name) for one in passes] for field in fields(DraftPass))
        return DraftPass(*(list(chain.from_iterable(figure)) for figure in figures))

    def judge(self, layers: Iterable[int], *, limited: bool = True) -> Judgement:
        """The figures of the draft without the attention of `layers`.

        Raises:
            OutOfTokens: if the set is new to this search, its forward tokens are spent, and `limited`.
        """
        key = tuple(sorted(layers))
        if key not in self._seen:
            if limited:
                self.spend(0.0)
            self._find_out(key)
            self.forward_tokens += self._cost(self.mask(key)) + self._tokens_decoded(key)
            self._seen.add(key)
        return self._known[key]

    def value(self, layers: Iterable[int]) -> float:
        """The objective for the draft without the attention of `layers`; the search's history lists it.

        `listener`, where it is set, is told of it.

        Raises:
            OutOfTokens: as `judge`.
        """
        judgement = self.judge(layers)
        value = self.objective.value(judgement)
        trial = Trial(tuple(sorted(layers)), value)
        self.history.append(trial)
        if self.listener is not None:
            self.listener(trial)
        return value

    def spend(self, tokens: float) -> None:
        """Count work that a selector does by itself, before it does it.

        Raises:
            OutOfTokens: if nothing is left.
        """
        if self.left <= 0:
            raise OutOfTokens
        self.forward_tokens += tokens

    def stay_near(self, layers: Iterable[int]) -> None:
        """Announce that the next sets are variations of this one: they will start where they differ from it."""
        mask = self.mask(layers)
        self.spend(self._cost(mask))
        self._near = mask

    def best(self, sizes: range) -> tuple[int, ...] | None:
        """The best set of a permitted size that this search has judged; of equals, the one with the lower layers."""
        complete = [trial for trial in self.history if len(trial.layers) in sizes]
        return min(complete, key=lambda trial: (-trial.value, trial.layers)).layers if complete else None

    @property
    def batches(self) -> list[Batch]:
        """The calibration documents as they are run."""
        return [full.batch for full in self._full]

    def differentiate(self) -> float:
        """Add the gradient of the mean KL(target || model as it is now) to whatever in it requires one.

        Returns:
            The KL in nats, mean over response tokens.
        """
        tokens = sum(full.tokens for full in self._full)
        total = 0.0
        for full in self._full:
            loss = full.divergence() / tokens
            loss.backward()
            total += loss.item()
        return total

    def _find_out(self, layers: tuple[int, ...]) -> None:
        """Whatever the objective needs to know of a set, and is not known."""
        mask, length = self.mask(layers), self.objective.decoded_length
        if layers not in self._known:
            self._remember(layers, Judgement.of(mask, self.run(layers), self.run_retrieval(layers)))
        known = self._known[layers]
        if length is not None and length not in known.decoded:
            throughput = measure_throughput(self.model, self.documents, mask, length)
            self._remember(layers, replace(known, decoded={**known.decoded, length: throughput}))

    def _tokens_decoded(self, layers: tuple[int, ...]) -> int:
        length = self.objective.decoded_length
        return 0 if length is None else self._known[layers].decoded[length].tokens_read

    def _cost(self, mask: ComponentMask) -> float:
        layers = self.model.anatomy.num_layers
        first = max(mask.first_difference(other, layers) for other in (ComponentMask(), self._near))
        return self.calibration_tokens * (1 - first / layers)

    def learn(self, layers: Sequence[int], row: dict[str, Any]) -> None:
        """Take over a judgement that another process made (`Judgement.to_row`), so that it need not be repeated."""
        key, learned = tuple(sorted(layers)), Judgement.from_row(self.mask(layers), row)
        known = self._known.get(key)
        if known is None or known.decoded.keys() < learned.decoded.keys():
            self._known[key] = learned

    def _open(self, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"trials-{hash_json(self.identity)[:12]}.jsonl"
        for row in read_batches(path).values():
            self.learn(row["layers"], row)
        return path

    def _remember(self, layers: tuple[int, ...], judgement: Judgement) -> None:
        self._known[layers] = judgement
        if self._file is not None:
            append_batch(self._file, str(layers), {"layers": layers, **judgement.to_row()})
