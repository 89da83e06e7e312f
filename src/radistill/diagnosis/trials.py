"""Judging sets of layers that are skipped or replaced, once each."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from radistill.batch_log import append_batch, read_batches
from radistill.diagnosis.full_model import FullModel, full_models
from radistill.diagnosis.judgement import DraftPass, Judgement
from radistill.diagnosis.objectives import Objective
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.mixers import use_fast_paths
from radistill.models.anatomy import Component
from radistill.models.loading import Model, load
from radistill.models.sequences import Document, batches, collate, hash_documents
from radistill.processes import ALONE, Processes
from radistill.speculation.masks import ComponentMask
from radistill.speculation.presets import describe_mask
from radistill.speculation.substitutes import Substitutes
from radistill.speculation.throughput import measure_throughput

T = TypeVar("T")
R = TypeVar("R")

_MOST_PADDING = 0.05

MEMORY_GIB = 3.0
"""Room that a search has for what it remembers of the full model, where nothing else is said."""


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
        memory_gib: float = MEMORY_GIB,
        folder: Path | None = None,
        substitutes: Substitutes | None = None,
        components: Sequence[Component] = (Component.ATTENTION,),
        parts: Sequence[tuple[int, Component]] = (),
        processes: Processes = ALONE,
    ) -> None:
        """Run the full model over the documents.

        Args:
            model, documents, retrieval, tokens_per_batch: as in `diagnose`.
            objective: what `value` is.
            memory_gib: room for what is remembered of the full model; the rest is computed again, with the same result.
            folder: where judgements are kept; None keeps them in memory only.
            substitutes: what runs in place of each attention of a set; None skips it.
            components: what goes of each layer of a set.
            parts: where given, sets are not of layers but of places in this list, and what goes is the component of
                the layer at each.
            processes: who share the batches; all must make this together, and then call `lead`.

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
        self.model, self.objective, self.substitutes = model, objective, substitutes
        self.documents, self.retrieval = documents, retrieval
        self.components, self.parts = tuple(components), tuple(parts)
        self.tokens_per_batch, self.memory_gib, self._folder = tokens_per_batch, memory_gib, folder
        self.calibration_hash = hash_documents((*documents, *retrieval))
        self.calibration_tokens = sum(len(document.tokens) for document in (*documents, *retrieval))
        self.response_tokens = sum(document.response_tokens for document in documents)
        self.processes = processes
        self._known: dict[tuple[int, ...], Judgement] = {}
        self._file = self._open(folder) if processes.is_main else None
        started = time.perf_counter()
        groups = [batches(texts, tokens_per_batch, _MOST_PADDING) for texts in (documents, retrieval)]
        own = [part[processes.index :: processes.count] for part in groups]
        collated = [collate(group, model.pad_token_id, model.network.device) for group in chain(*own)]
        made = full_models(model, collated, substitutes, memory_gib)
        self._counts = [len(part) for part in groups]
        self._own = made[: len(own[0])], made[len(own[0]) :]
        processes.wait()
        self.seconds_a_pass = time.perf_counter() - started
        self.start()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made of: another process, by itself, loads the model and runs it again."""
        network = self.model.network
        loaded = {
            "source": self.model.source,
            "dtype": str(network.dtype).removeprefix("torch."),
            "device": str(network.device),
            "trust_remote_code": type(network).__module__.startswith("transformers_modules."),
        }
        names = ("documents", "objective", "retrieval", "tokens_per_batch", "memory_gib", "substitutes", "components")
        made = {name: getattr(self, name) for name in (*names, "parts")} | {"folder": self._folder}
        return _made_again, (loaded, self.model.fingerprint, made)

    def start(self, limit: float | None = None) -> None:
        """Begin a search: nothing is asked for or spent yet, apart from the pass of the full model.

        Args:
            limit: forward tokens after which `judge` raises `OutOfTokens`; None is no limit.
        """
        self.history: list[Trial] = []
        self.forward_tokens = float(self.calibration_tokens)
        self._limit = limit
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

    def lead(self, search: Callable[[], T]) -> T:
        """What `search` returns, which judges sets in the main process, while the others compute their share.

        All processes must call this together, and all get the result.
        """
        return self.processes.lead(search, self._answer)

    def each(self, work: Callable[[FullModel], R], *, retrieval: bool = False) -> list[R]:
        """What `work` makes of each batch of documents, or of retrieval texts, in their order, whoever holds it.

        Of several processes, the main one calls this inside `lead`; `work` and what it returns are sent by pickle.
        """
        parts = self.processes.ask((work, retrieval), self._answer)
        return self.processes.dealt(parts, self._counts[retrieval])

    def _answer(self, question: tuple[Callable[[FullModel], R], bool]) -> list[R]:
        work, retrieval = question
        return [work(full) for full in self._own[retrieval]]

    def run(self, layers: Iterable[int]) -> DraftPass:
        """One pass of the draft without the attention of `layers`, without looking it up or counting it."""
        return self._pass(layers, retrieval=False)

    def run_retrieval(self, layers: Iterable[int]) -> DraftPass | None:
        """The same over the retrieval texts; None if there are none."""
        return self._pass(layers, retrieval=True) if self.retrieval else None

    def _pass(self, layers: Iterable[int], *, retrieval: bool) -> DraftPass:
        passes = self.each(partial(FullModel.draft_pass, mask=self.mask(layers), near=self._near), retrieval=retrieval)
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
            decoded = self._find_out(key)
            self.forward_tokens += self._cost(self.mask(key)) + decoded
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
        if self._limit is not None and self.forward_tokens >= self._limit:
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

    def _find_out(self, layers: tuple[int, ...]) -> int:
        """Whatever the objective needs to know of a set, and is not known; how many tokens it takes to decode."""
        mask, length = self.mask(layers), self.objective.decoded_length
        if layers not in self._known:
            self._remember(layers, Judgement.of(mask, self.run(layers), self.run_retrieval(layers)))
        if length is None:
            return 0
        known = self._known[layers]
        if length not in known.decoded:
            throughput = measure_throughput(self.model, self.documents, mask, length)
            self._remember(layers, replace(known, decoded={**known.decoded, length: throughput}))
        return self._known[layers].decoded[length].tokens_read

    def _cost(self, mask: ComponentMask) -> float:
        layers = self.model.anatomy.num_layers
        first = max(mask.first_difference(other, layers) for other in (ComponentMask(), self._near))
        return self.calibration_tokens * (1 - first / layers)

    def learn(self, layers: Sequence[int], row: dict[str, Any]) -> None:
        """Take over a judgement that another process made (`Judgement.to_row`), so that it need not be repeated."""
        key, learned = tuple(sorted(layers)), Judgement.from_row(self.mask(layers), row)
        if self._known.setdefault(key, learned).decoded.keys() < learned.decoded.keys():
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


def _made_again(loaded: dict[str, Any], fingerprint: str, made: dict[str, Any]) -> Trials:
    """What was pickled.

    Raises:
        RadistillError: if the model that is found under the name is another one.
    """
    model = load(**loaded)
    if model.fingerprint != fingerprint:
        raise RadistillError(f"{model.source}: is not the model that is searched; save that one and load it from there")
    for block in () if made["substitutes"] is None else made["substitutes"].blocks.values():
        use_fast_paths(block)
    return Trials(model, **made)
