"""Base and hybrid side by side, over growing contexts: cache, prefill, decoding, peak memory."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.evaluation.savings.memory import peak_memory
from radistill.evaluation.savings.speed import Drafted, Pass, drafted_pass, timed_pass
from radistill.evaluation.sentences import tokens_of_text
from radistill.files import read_json, write_json
from radistill.models.loading import Model
from radistill.provenance import machine, versions
from radistill.runs.contents import LONG, Savings
from radistill.speculation.masks import ComponentMask

CONTEXTS = (512, 1024, 2048, 4096)
CACHE_LENGTHS = (4096, 32_768, 131_072)
"""Lengths for which the cache is stated; it follows from the config, so no model has to read that much."""

_NO_MATTER = ("contexts", "beyond_context", "repeats")
"""Settings that make no other passes."""

Kept = TypeVar("Kept", Pass, Drafted)

Reader = Callable[[Sequence[int]], Pass]
"""Reads a context in every row of a batch and decodes behind it."""


class Room(NamedTuple):
    """Tokens that an engine is to hold: a context, the steps behind it, and the longest context of a measurement."""

    context: int
    steps: int
    longest: int


class Engine(Protocol):
    """What runs a model."""

    @property
    def name(self) -> str:
        """Of the engine, with its version where that is not among `versions()`."""

    @property
    def dtype(self) -> str | None:
        """Of the weights that it reads; None is that of the model."""

    def reading(self, model: Model, room: Room, batch_size: int) -> AbstractContextManager[Reader]:
        """The model, ready to read a context and to decode behind it."""


class Transformers:
    """The model as it is loaded."""

    name = "transformers"
    dtype = None

    @contextmanager
    def reading(self, model: Model, room: Room, batch_size: int) -> Iterator[Reader]:
        """As `Engine`."""

        def read(tokens: Sequence[int]) -> Pass:
            rows = torch.tensor([list(tokens)] * batch_size, device=model.network.device)
            return timed_pass(model, rows, room.steps)

        yield read


@dataclass(frozen=True)
class SavingsSettings:
    """How savings are measured.

    Attributes:
        contexts: tokens that are read before decoding; None is those of `CONTEXTS` that both models can hold.
        batch_size: sequences at once, of plain decoding; self-speculation decodes one.
        decode_tokens: decoding steps after each context.
        repeats: timed passes of each model over each context, those of earlier calls among them, after one to warm up
            where it is short.
        draft_length: tokens that self-speculation drafts in a round; None leaves it out.
        beyond_context: allow contexts beyond the models' own. What they write there means nothing, but its speed does.
    """

    contexts: tuple[int, ...] | None = None
    batch_size: int = 1
    decode_tokens: int = 32
    repeats: int = 3
    draft_length: int | None = 4
    beyond_context: bool = False


def measure_savings(
    base: Model, hybrid: Model, settings: SavingsSettings, path: Path, engine: Engine | None = None
) -> dict[str, Any]:
    """Measure both models and write the figures to `path`, after each turn.

    Passes of base and hybrid alternate, so that what slows the machine down for a while slows both. The first pass over
    a context is the one whose memory is watched. It also warms up and is not timed, unless the context is so long that
    it takes minutes. The turns that `path` holds already, of the same models and settings on the same machine, count.

    Args:
        base, hybrid: what is compared.
        settings: see there; self-speculation is transformers' alone.
        path: where the figures go.
        engine: None is transformers.

    Returns:
        What was written: `models` (by `base` and `hybrid`: weights, bytes of the cache) and `contexts` (for each, by
        model: the `passes`, medians of tokens a second, peak memory, self-speculation; and `ratios` of speeds in the
        same turn).

    Raises:
        RadistillError: if a model cannot hold a context, or `path` holds something else.
    """
    serving: Engine = engine or Transformers()
    models = {"base": base, "hybrid": hybrid}
    contexts = _contexts(list(models.values()), settings)
    identity = {
        "fingerprints": {name: model.fingerprint for name, model in models.items()},
        "settings": _identifying(asdict(settings)),
        "device": str(base.network.device),
        "engine": serving.name,
        "dtype": serving.dtype or str(base.network.dtype).removeprefix("torch."),
        "machine": machine(),
        "versions": versions(),
    }
    found = _measured(path, identity)
    drafts = _drafts(base, hybrid) if settings.draft_length is not None else {}
    told: dict[str, Any] = identity | {
        "settings": _identifying(asdict(settings)) | {"repeats": settings.repeats},
        "models": {name: _size(model) for name, model in models.items()},
    }
    done = sum(min(settings.repeats, _turns(found.get(length, {}))) for length in contexts)
    with progress("savings", len(contexts) * settings.repeats, "turns", done=done) as advance:
        for length in contexts:
            room = Room(length, settings.decode_tokens, max(contexts))
            for row in _at(room, models, drafts, settings, serving, found.get(length, {})):
                found[length] = row
                write_json(path, told | {"contexts": [found[context] for context in sorted(found)]})
                advance()
    return dict(read_json(path))


def _turns(row: dict[str, Any]) -> int:
    """Turns that a row of the file holds."""
    return min(len(row.get(name, {}).get("passes", ())) for name in ("base", "hybrid"))


def _at(
    room: Room,
    models: dict[str, Model],
    drafts: dict[str, ComponentMask],
    settings: SavingsSettings,
    engine: Engine,
    row: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """All figures at one context length, after each turn that `row`, as an earlier call left it, lacks."""
    done = _turns(row)
    if done >= settings.repeats:
        return
    length = room.context
    prompts = {name: tokens_of_text(model, length) for name, model in models.items()}
    kept: dict[str, dict[str, Any]] = {name: row[name] if done else {} for name in models}
    passes = {name: [_of(Pass, one) for one in kept[name].get("passes", [])[:done]] for name in models}
    drafted = {name: [_of(Drafted, one) for one in kept[name].get("drafted", [])] for name in drafts}
    peaks: dict[str, int | None] = {name: kept[name].get("peak_bytes") for name in models if done}
    with ExitStack() as stack:
        readers = {
            name: stack.enter_context(engine.reading(model, room, settings.batch_size))
            for name, model in models.items()
        }
        for turn in range(done - (length < LONG), settings.repeats):
            is_timed = turn >= done
            for name, model in models.items():
                with nullcontext() if name in peaks else peak_memory(model.network.device) as peak:
                    passed = readers[name](prompts[name])
                if peak is not None:
                    peaks[name] = peak.bytes
                passes[name] += [passed] if is_timed else []
                if name in drafts and settings.draft_length is not None:
                    found = drafted_pass(model, prompts[name], drafts[name], settings.draft_length, room.steps)
                    drafted[name] += [found] if is_timed and found else []
            if is_timed:
                tokens = length * settings.batch_size
                yield {"context": length, "ratios": _ratios(passes["base"], passes["hybrid"])} | {
                    name: _figures(passes[name], peaks[name], drafted.get(name, []), tokens, settings)
                    for name in models
                }


def _of(kind: type[Kept], given: dict[str, Any]) -> Kept:
    """A dataclass from a mapping that may have more fields."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def _ratios(base: Sequence[Pass], hybrid: Sequence[Pass]) -> dict[str, list[float]]:
    """Speed of the hybrid over that of the base, turn by turn: the median, the smallest and the largest."""
    pairs = list(zip(base, hybrid, strict=True))
    found = {
        "prefill": [one.prefill_seconds / other.prefill_seconds for one, other in pairs],
        "decode": [statistics.median(one.step_seconds) / statistics.median(other.step_seconds) for one, other in pairs],
    }
    return {name: [statistics.median(each), min(each), max(each)] for name, each in found.items()}


def _figures(
    passes: Sequence[Pass], peak: int | None, drafted: Sequence[Drafted], tokens: int, settings: SavingsSettings
) -> dict[str, Any]:
    prefill = statistics.median(one.prefill_seconds for one in passes)
    step = statistics.median(seconds for one in passes for seconds in one.step_seconds)
    speeds = [settings.batch_size / statistics.median(one.step_seconds) for one in passes]
    speculation = drafted and {
        "tokens_per_second": statistics.median(one.tokens_per_second for one in drafted),
        "acceptance_rate": drafted[0].acceptance_rate,  # greedy, so the same each time
    }
    return {
        "prefill_tokens_per_second": tokens / prefill,
        "first_token_seconds": prefill,
        "decode_tokens_per_second": settings.batch_size / step,
        "decode_range": [min(speeds), max(speeds)],
        "peak_bytes": peak,
        "cache_bytes": passes[0].cache_bytes,
        "self_speculation": speculation or None,
        "passes": [asdict(one) for one in passes],
        "drafted": [asdict(one) for one in drafted],
    }


def _size(model: Model) -> dict[str, Any]:
    anatomy, number = model.anatomy, model.network.dtype.itemsize
    return {
        "source": model.source,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "weight_bytes": sum(parameter.nbytes for parameter in model.network.parameters()),
        "kv_bytes_per_token": anatomy.kv_bytes_per_token(number),
        "state_bytes": anatomy.ssm_state_bytes(),
        "cache_bytes": {str(length): anatomy.cache_bytes(length, number) for length in CACHE_LENGTHS},
    }


def _drafts(base: Model, hybrid: Model) -> dict[str, ComponentMask]:
    """What each drafts without: the base the attention that the hybrid replaces (RAD's draft), the hybrid all of it."""
    replaced = set(base.anatomy.attention_layers) - set(hybrid.anatomy.attention_layers)
    drafts = {}
    if replaced and base.anatomy.num_layers == hybrid.anatomy.num_layers:  # a cut model has other numbers
        drafts["base"] = ComponentMask.attention(replaced)
    if hybrid.anatomy.ssm_layers and hybrid.anatomy.attention_layers:
        drafts["hybrid"] = ComponentMask.attention(hybrid.anatomy.attention_layers)
    return drafts


def _contexts(models: list[Model], settings: SavingsSettings) -> list[int]:
    limits = [model.context_length for model in models]
    longest = min((limit for limit in limits if limit is not None), default=None)
    # A round of self-speculation may draft beyond the last token that is wanted.
    more = settings.decode_tokens + (settings.draft_length or 0) + 1
    wanted = settings.contexts or tuple(c for c in CONTEXTS if longest is None or c + more <= longest)
    for context in wanted or (min(CONTEXTS),):
        if longest is not None and context + more > longest and not settings.beyond_context:
            raise RadistillError(
                f"savings: a context of {context} tokens and {more} more are beyond the {longest} tokens of the model; "
                "name shorter ones with --contexts, or add --beyond-context to time text that means nothing"
            )
    return sorted(wanted)


def _identifying(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NO_MATTER}


def _measured(path: Path, identity: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What an earlier call has measured, by context; a measurement of anything else is not overwritten."""
    if not path.exists():
        return {}
    found = read_json(path, Savings, way_out="; remove it, or choose another file with --out").given()
    if "contexts" not in found:
        raise RadistillError(f"{path}: holds no savings; choose another file with --out")
    known = found | {"settings": _identifying(found.get("settings", {}))}
    differing = [name for name, value in identity.items() if known.get(name) != value]
    if differing:
        raise RadistillError(
            f"{path}: was measured with other {', '.join(differing)}; remove it, or choose another file with --out"
        )
    return {row["context"]: row for row in found["contexts"]}
