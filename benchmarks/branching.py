"""Branches that are drafted while the target verifies: rollback, the length network, the simulator, and the speed.

    python benchmarks/branching.py --draft FOLDER [--pair smollm2-135m] [--model smollm2-135m] [--prompts 12]
        [--max-new-tokens 64] [--draft-length 4] [--branches 3] [--in-turn 2] [--length hrad.safetensors]
        [--train-count 64] [--temperature 0] [--threads 2] [--seed 0] [--more 0]

FOLDER is a trained drafter (`python benchmarks/drafter_training.py` makes one for SmolLM2). Every prompt is answered
plainly, with drafting and verifying in turn (`--in-turn` tokens a round), with one branch that never ends early
(PEARL's way), with branches by confidence, and with branches by the length network, one after another, so that all see
the same machine. Speeds are those after the first round, which reads the prompt. `--threads` are torch's: two let
target and draft process have one each, while plain decoding has both. If the file of `--length` is not there, a network
is trained on `--train-count` other answers; `--prompts 0` does nothing else. `--length ""` leaves the network out. The
pair goes to benchmarks/results/branching.json. How much is rolled back does not depend on the machine: with `--more`,
so many further prompts are decoded with one branch and with branches by confidence, untimed, and the pair there gets
the rollback of all its prompts.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.result import RESULTS, add_part, options
from drafters import plain_seconds
from radistill import load, load_data
from radistill.files import read_json
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.provenance import machine, versions
from radistill.speculation.branching.length import CONFIDENCE, Length, load_length, save_length
from radistill.speculation.branching.loop import Branched, branching_generate
from radistill.speculation.branching.measure import time_overlap
from radistill.speculation.branching.process import DraftProcess, draft_process
from radistill.speculation.branching.simulate import course_of, rows_of
from radistill.speculation.branching.training import train_length
from radistill.speculation.decode import Decoded, speculative_generate
from radistill.speculation.prediction import find_parting

DATA = "reasoning-gym:gsm_symbolic"
WAYS = ("one branch (PEARL)", "branches by confidence", "branches by network")
NEAR_TIE = 1e-4
TEXTS = ("same", "near tie", "different")


def train(target: Model, drafter: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a network for the length on answers that no figure below is measured on, and keep it."""
    answers = load_data(DATA, target, arguments.train_count, arguments.seed + 1, arguments.max_new_tokens, rewrite=True)
    network, figures = train_length(
        target, drafter, answers, draft_length=arguments.draft_length, confidence=CONFIDENCE, seed=arguments.seed
    )
    save_length(network, Path(arguments.length), target, drafter, arguments.draft_length)
    return asdict(figures) | {
        "verdict": figures.verdict,
        "answers": len(answers),
        "draft_length": arguments.draft_length,
    }


def timed(decode: Any, **settings: Any) -> tuple[Decoded, float, int]:
    """What one prompt's decoding returns, and seconds and tokens after its first round."""
    marks: list[tuple[float, int]] = []
    decoded = decode(**settings, on_tokens=lambda _, new: marks.append((time.perf_counter(), len(new))))
    return decoded, marks[-1][0] - marks[0][0], sum(count for _, count in marks[1:])


def ways(arguments: argparse.Namespace, network: Any) -> dict[str, dict[str, Any]]:
    """How branches are drafted, by name."""
    found = {
        WAYS[0]: {"branches": 1, "length": Length(None)},
        WAYS[1]: {"branches": arguments.branches, "length": Length(CONFIDENCE)},
    }
    if network is not None:
        found[WAYS[2]] = {"branches": arguments.branches, "length": Length(CONFIDENCE, network)}
    return {name: way | {"draft_length": arguments.draft_length} for name, way in found.items()}


def decode_all(
    target: Model, process: DraftProcess, documents: Sequence[Document], network: Any, arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Every prompt in every way: seconds and tokens, and what was drafted."""
    found: dict[str, list[dict[str, Any]]] = {}
    common = {"max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature}
    for document in documents:
        prompt = list(document.tokens[: document.response_start])
        plain = plain_seconds(target, prompt, arguments.max_new_tokens, arguments.temperature)
        found.setdefault("plain", []).append({"seconds": plain, "tokens": 1})
        for name, way in {"in turn": None, **ways(arguments, network)}.items():
            decode: Any = partial(branching_generate, target, [prompt], process, **(way or {}))
            if way is None:
                decode = partial(
                    speculative_generate, target, [prompt], process.drafter, draft_length=arguments.in_turn
                )
            decoded, seconds, tokens = timed(decode, **common)
            branched = decoded.branched if isinstance(decoded, Branched) else decoded.drafted
            row = {"seconds": seconds, "tokens": tokens, "accepted": decoded.accepted, "drafted": branched}
            row |= {"rounds": decoded.rounds, "proposed": decoded.drafted}
            if not arguments.temperature:
                row["text"] = compared(target, document, decoded)
            found.setdefault(name, []).append(row)
    return found


def compared(target: Model, document: Document, decoded: Decoded) -> str:
    """One of `TEXTS`: how a greedy response stands to the target's own."""
    prompt, answer = document.tokens[: document.response_start], document.tokens[document.response_start :]
    parting = find_parting(target, list(prompt), answer, decoded.responses[0])
    return "same" if parting is None else "near tie" if parting.margin < NEAR_TIE else "different"


def ratio(rows: Sequence[dict[str, Any]], above: str, below: str) -> float:
    """Of sums over prompts."""
    return float(sum(row[above] for row in rows) / sum(row[below] for row in rows))


def difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], above: str, below: str) -> Any:
    """The second ratio of sums less the first, with a 95 % interval bootstrapped over prompts, paired."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(10_000):
        chosen = generator.integers(0, len(first), len(first))
        one, other = ([rows[index] for index in chosen] for rows in (first, second))
        drawn.append(ratio(other, above, below) - ratio(one, above, below))
    observed = ratio(second, above, below) - ratio(first, above, below)
    return {"difference": observed, "interval": np.quantile(drawn, (0.025, 0.975)).tolist(), "prompts": len(first)}


def simulated(
    target: Model, process: DraftProcess, documents: Sequence[Document], network: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds a token of each way, from rounds that are timed and rows that are read off the plain answers."""
    context = round(statistics.median(one.response_start + len(one.tokens) for one in documents) / 2)
    costs = time_overlap(
        target, process, context=context, branches=arguments.branches, temperature=arguments.temperature
    )
    found = {}
    for name, way in ways(arguments, network).items():
        rows = [
            rows_of(
                target,
                process.drafter,
                document,
                arguments.temperature,
                way["branches"],
                way["length"].network,
            )
            for document in documents
        ]
        courses = [course_of(one, arguments.draft_length, way["length"].confidence, costs) for one in rows]
        found[name] = sum(one.seconds for one in courses) / sum(map(len, rows))
    return {"context": context, "costs": asdict(costs), "c": costs.ratio, "seconds_a_token": found}


def measure(target: Model, drafter: Model, network: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Decode in all ways, simulate, and compare."""
    documents = load_data(
        DATA,
        target,
        arguments.prompts,
        arguments.seed,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        rewrite=True,
    )
    with draft_process(drafter, target) as process:
        # Both have to be warm before anything is timed.
        prompt = list(documents[0].tokens[: documents[0].response_start])
        branching_generate(target, [prompt], process, draft_length=4, max_new_tokens=8)
        foreseen = simulated(target, process, documents, network, arguments)
        found = decode_all(target, process, documents, network, arguments)
    plain = ratio(found["plain"], "seconds", "tokens")
    summary: dict[str, Any] = {}
    for name, rows in found.items():
        a_token = ratio(rows, "seconds", "tokens")
        summary[name] = {"milliseconds_a_token": 1000 * a_token, "speed_over_plain": plain / a_token}
        if "drafted" in rows[0]:
            summary[name] |= {
                "rollback_share": 1 - ratio(rows, "accepted", "drafted"),
                "accepted_of_proposed": ratio(rows, "accepted", "proposed"),
                "accepted_a_round": ratio(rows, "accepted", "rounds"),
                "texts": {kind: sum(row.get("text") == kind for row in rows) for kind in TEXTS},
            }
        if name in foreseen["seconds_a_token"]:
            summary[name]["simulated_over_measured"] = foreseen["seconds_a_token"][name] / a_token
    one, confident, by_network = (found.get(name, []) for name in WAYS)
    # Of kept shares: a lower rollback share is a higher kept one.
    pairs = {"branches by confidence less one branch": (one, confident)}
    if by_network:
        pairs["branches by network less by confidence"] = (confident, by_network)
    differences = {
        pair: {
            "kept_share": difference(*both, "accepted", "drafted"),
            "tokens_a_round": difference(*both, "tokens", "rounds"),
            "seconds_a_token": difference(*both, "seconds", "tokens"),
        }
        for pair, both in pairs.items()
    }
    return {"ways": summary, "differences": differences, "simulated": foreseen, "by_prompt": found}


def rollback(target: Model, drafter: Model, arguments: argparse.Namespace, pair: dict[str, Any]) -> dict[str, Any]:
    """Rollback over the prompts that a pair has and further ones, the difference, and how many texts are the same."""
    rows = {name: list(pair["by_prompt"][name]) for name in WAYS[:2]}
    timed_prompts = len(rows[WAYS[0]])
    documents = load_data(
        DATA, target, timed_prompts + arguments.more, arguments.seed, arguments.max_new_tokens, rewrite=True
    )
    with draft_process(drafter, target) as process:
        for document in documents[timed_prompts:]:
            prompt = list(document.tokens[: document.response_start])
            for name, way in ways(arguments, None).items():
                decoded = branching_generate(target, [prompt], process, max_new_tokens=arguments.max_new_tokens, **way)
                text = compared(target, document, decoded)
                rows[name].append({"accepted": decoded.accepted, "drafted": decoded.branched, "text": text})
    return {
        "prompts": len(documents),
        "shares": {name: 1 - ratio(ways_rows, "accepted", "drafted") for name, ways_rows in rows.items()},
        "kept_share": difference(rows[WAYS[0]], rows[WAYS[1]], "accepted", "drafted"),
        "texts": {kind: sum(row["text"] == kind for both in rows.values() for row in both) for kind in TEXTS},
    }


def main() -> None:
    """Train where nothing is trained, measure, print the summary, and add it to the result."""
    arguments = options(
        __doc__,
        draft="",
        pair="smollm2-135m",
        model="smollm2-135m",
        prompts=12,
        max_new_tokens=64,
        draft_length=4,
        branches=3,
        in_turn=2,
        length="hrad.safetensors",
        train_count=64,
        temperature=0.0,
        threads=2,
        seed=0,
        more=0,
    )
    drafter, target = load(arguments.draft), load(arguments.model)
    if arguments.more:
        pairs = read_json(RESULTS / "branching.json")["pairs"]
        pairs[arguments.pair]["rollback"] = rollback(target, drafter, arguments, pairs[arguments.pair])
        print(pairs[arguments.pair]["rollback"])
        add_part("branching", "pairs", pairs)
        return
    settings = {name: value for name, value in vars(arguments).items() if name not in ("draft", "model", "length")}
    about = {
        "settings": settings | {"target": target.fingerprint, "drafter": drafter.fingerprint, "data": DATA},
        "versions": versions(),
        "machine": machine(),
    }
    name = arguments.pair if not arguments.temperature else f"{arguments.pair}, temperature {arguments.temperature:g}"
    if arguments.length and not Path(arguments.length).exists():
        figures = train(target, drafter, arguments)
        print(figures["verdict"])
        add_part("branching", "length_network", {arguments.pair: figures | about})
    if not arguments.prompts:
        return
    network = None
    if arguments.length:
        network = load_length(Path(arguments.length), target, drafter, arguments.draft_length)
    found = measure(target, drafter, network, arguments)
    for way, figures in found["ways"].items():
        print(way, {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()})
    for pair, figures in found["differences"].items():
        print(pair, figures)
    add_part("branching", "pairs", {name: found | about})


if __name__ == "__main__":
    main()
