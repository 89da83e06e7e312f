"""The trade-off: what a model keeps, and what its cache needs, for every number of attention layers that may go."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from radistill.batch_log import append_batch, read_batches
from radistill.console import note, progress
from radistill.diagnosis.judgement import DraftPass, Judgement
from radistill.diagnosis.search import search
from radistill.diagnosis.selectors import Curve
from radistill.diagnosis.selectors.base import Problem
from radistill.diagnosis.trials import Trials
from radistill.errors import RadistillError
from radistill.evaluation.savings.measure import CACHE_LENGTHS
from radistill.files import hash_json
from radistill.models.anatomy import Anatomy
from radistill.models.sequences import Document
from radistill.speculation.masks import ComponentMask
from radistill.statistics import paired_bootstrap, ratio_interval


@dataclass(frozen=True)
class Best:
    """The best set of each size, by size, and what finding them cost.

    Attributes:
        sets: the layers that go, sorted.
        judgements: on the calibration texts.
        forward_tokens: calibration tokens through the whole model.
    """

    sets: dict[int, tuple[int, ...]]
    judgements: dict[int, Judgement]
    forward_tokens: float


def best_sets(trials: Trials, selector: Curve, *, seed: int, passes: float | None, folder: Path | None) -> Best:
    """Let one search find the best set of every size from one to all but one; the arguments are those of `search`.

    Raises:
        RadistillError: if the model has fewer than two attention layers.
    """
    most = len(trials.model.anatomy.attention_layers) - 1
    if most < 1:
        raise RadistillError(f"{trials.model.source}: has no two attention layers, so there is nothing to trade")
    found = search(selector, Problem(trials, most, seed, folder), passes)
    if found.interrupted:
        raise KeyboardInterrupt
    sets = {size: best for size in range(1, most + 1) if (best := trials.best(range(size, size + 1)))}
    judgements = {size: trials.judge(layers, limited=False) for size, layers in sets.items()}
    if len(sets) < most:
        note(f"tradeoff: the search was ended early, so that {most - len(sets)} of {most} sizes have no set")
    return Best(sets, judgements, found.forward_tokens)


def measured(trials: Trials, sets: Mapping[int, tuple[int, ...]], folder: Path | None) -> dict[int, dict[str, Any]]:
    """Held-out figures of the best set of each size, and of the model itself as size 0: one pass for each.

    Args:
        trials: judges on held-out texts.
        sets: by size.
        folder: where finished sizes are kept, so that a killed run goes on; None keeps them in memory only.

    Returns:
        By size: `kl` in nats a token with its 95 % interval (bootstrap over the documents), `acceptance_rate`,
        `accepted_length` (of 4 drafted), and where there are retrieval texts the numbers that are `found`, the number
        `of` those that the model itself finds, those that `both` find, `recall`, which is the first over the second,
        and its 95 % interval (`ratio_interval`). Only those of `both` over `of` would fall short of 1 for any draft
        that differs: where the model finds a number by a hair, the smallest change loses some and finds others.
    """
    path = None if folder is None else folder / f"heldout-{hash_json(trials.identity)[:12]}.jsonl"
    rows = {} if path is None else read_batches(path)
    figures: dict[int, dict[str, Any]] = {}
    base: Sequence[bool] = ()
    with progress("held-out figures", len(sets) + 1, "sizes") as advance:
        for size, layers in [(0, ()), *sorted(sets.items())]:
            row = rows.get(str(layers))
            if row is None:
                row = _row(trials.run(layers), trials.run_retrieval(layers))
                if path is not None and all(map(math.isfinite, row["nats"])):  # what overflows is no JSON
                    append_batch(path, str(layers), row)
            base = base or row["found"]
            figures[size] = _figures(row, base)
            advance(1, f"{size} layers: KL {figures[size]['kl']:.4f}")
    return figures


def _row(draft: DraftPass, retrieval: DraftPass | None) -> dict[str, Any]:
    judged = Judgement.of(ComponentMask(), draft)
    return {
        "nats": list(draft.nats),
        "tokens": draft.tokens,
        "acceptance_rate": judged.acceptance_rate,
        "accepted_length": judged.mean_accepted_length[4],
        "found": [] if retrieval is None else list(retrieval.found),
    }


def _figures(row: Mapping[str, Any], base: Sequence[bool]) -> dict[str, Any]:
    nats, tokens = row["nats"], row["tokens"]
    spread = paired_bootstrap([0.0] * len(nats), nats, tokens)
    figures = {
        "kl": sum(nats) / sum(tokens),
        "kl_interval": list(spread.interval),
        "acceptance_rate": row["acceptance_rate"],
        "accepted_length": row["accepted_length"],
    }
    if not any(base):
        return figures
    found, of = sum(row["found"]), sum(base)
    both = sum(mine and before for mine, before in zip(row["found"], base, strict=True))
    interval = ratio_interval(both, of - both, found - both)
    return figures | {
        "found": found,
        "of": of,
        "both": both,
        "recall": found / of,
        "recall_interval": list(interval),
    }


def cache_bytes(anatomy: Anatomy, layers: Collection[int], state_numbers: int) -> dict[str, int]:
    """Bytes of one sequence's cache at `CACHE_LENGTHS`: keys and values in bfloat16, states in float32.

    Args:
        anatomy: of the model.
        layers: whose attention is replaced.
        state_numbers: numbers that one new block keeps, at any length.
    """
    cached = tuple(0 if layer in layers else numbers for layer, numbers in enumerate(anatomy.cached))
    states = anatomy.ssm_state_bytes() + 4 * state_numbers * len(layers)
    return {str(tokens): replace(anatomy, cached=cached).kv_bytes(tokens) + states for tokens in CACHE_LENGTHS}


def trade_off(
    trials: Trials,
    heldout: tuple[Sequence[Document], Sequence[Document]],
    selector: Curve,
    *,
    state_numbers: int,
    seed: int,
    passes: float | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The trade-off of a model: the best set of every size, found on calibration texts and measured on others.

    Args:
        trials: judges on calibration texts; all of its processes must call this together.
        heldout: documents, and retrieval texts or none, that the search has not seen.
        selector: how it searches.
        state_numbers: as in `cache_bytes`.
        seed, passes, folder: as in `search`.

    Returns:
        As `runs.contents.TradeOff` describes it. A size whose draft's logits overflow has no point.

    Raises:
        RadistillError: as `best_sets`.
        KeyboardInterrupt: on Ctrl-C; what was judged is kept in `folder`.
    """
    best = trials.lead(partial(best_sets, trials, selector, seed=seed, passes=passes, folder=folder))
    documents, retrieval = heldout
    judge = Trials(
        trials.model,
        documents,
        trials.objective,
        retrieval=retrieval,
        tokens_per_batch=trials.tokens_per_batch,
        memory_gib=trials.memory_gib,
        substitutes=trials.substitutes,
        components=trials.components,
        processes=trials.processes,
    )
    figures = judge.lead(partial(measured, judge, best.sets, folder))
    sets = {
        size: layers
        for size, layers in best.sets.items()
        if math.isfinite(figures[size]["kl"] + best.judgements[size].kl)
    }
    if broken := best.sets.keys() - sets.keys():
        note(f"tradeoff: no finite logits without {', '.join(map(str, sorted(broken)))} layers; left out")
    points = [
        {
            "budget": size,
            "layers": list(layers),
            **figures[size],
            "cache_bytes": cache_bytes(trials.model.anatomy, layers, state_numbers),
        }
        for size, layers in [(0, ()), *sorted(sets.items())]
    ]
    for point in points[1:]:
        judged = best.judgements[point["budget"]]
        point["calibration"] = {"value": trials.objective.value(judged), "kl": judged.kl}
    return {
        "objective": trials.objective.to_json(),
        "selector": selector.model_dump(mode="json"),
        "documents": len(documents),
        "retrieval_texts": len(retrieval),
        "passes": round(best.forward_tokens / trials.calibration_tokens, 1),
        "points": points,
    }


def kept(points: Sequence[Mapping[str, Any]], keep: Mapping[str, float]) -> Mapping[str, Any] | None:
    """The point with the most layers whose figures hold every limit, also at the worse end of their intervals.

    Args:
        points: of a trade-off.
        keep: `kl` at most, `recall` at least.

    Returns:
        None if not even the smallest budget holds them.
    """
    holding = [
        point
        for point in points
        if point["budget"]
        and ("kl" not in keep or point["kl_interval"][1] <= keep["kl"])
        and ("recall" not in keep or point.get("recall_interval", (0.0,))[0] >= keep["recall"])
    ]
    return max(holding, key=lambda point: point["budget"], default=None)
