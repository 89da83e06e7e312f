"""Drafters: the speed that `radistill drafter measure` predicts, against the speed of decoding.

    python benchmarks/drafters.py [--model smollm2-135m] [--pairs skip self cut] [--prompts 4] [--max-new-tokens 48]
        [--draft-lengths 1 4] [--temperature 0] [--threads 2] [--cpu-time 0]

Pairs: the model without the middle third of its layers (`skip`), with itself as a second model (`self`), with a
model of its first layers, untrained (`cut`), or with the model in a file or folder. Every prompt is answered plainly
and with each draft length in turn, one at a time, so that all see the same machine. The speed is that after the first
round, which reads the prompt. Each pair
goes to the part `payoff` of benchmarks/results/drafters.json; other pairs and other parts stay. With `--cpu-time 1` and
one thread, seconds are those that the processor worked for this process, here and in what is measured: on a machine
that other work shares, wall time tells more about that work.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common.result import add_part, options
from radistill import load, load_data
from radistill.models.checkpoint import quiet
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.provenance import machine, versions
from radistill.speculation.decode import speculative_generate
from radistill.speculation.drafters import Drafter
from radistill.speculation.measure import measure_drafter
from radistill.speculation.presets import layer_skip

KEPT_LAYERS = 6


def first_layers(model: Model, layers: int) -> Model:
    """A model of its first layers, as a folder that is loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        config = type(model.network.config).from_dict(model.network.config.to_dict() | {"num_hidden_layers": layers})
        small = type(model.network)(config)
        small.load_state_dict(model.network.state_dict(), strict=False)
        with quiet():
            small.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        loaded = load(folder)
    loaded.source = f"the first {layers} layers of {model.source}"
    return loaded


def drafter_of(pair: str, model: Model) -> Drafter:
    """What drafts in a pair."""
    if pair == "skip":
        return layer_skip(model, 33)
    if pair in ("self", "cut"):
        return model if pair == "self" else first_layers(model, KEPT_LAYERS)
    return named(pair)


def named(source: str) -> Model:
    """A model, called by its file's name: a result tells nothing of this machine's folders."""
    model = load(source)
    model.source = Path(source).name
    return model


def plain_seconds(model: Model, prompt: list[int], tokens: int, temperature: float) -> float:
    """Seconds of a step of plain decoding, without the first, which reads the prompt."""
    seconds = []
    for count in (1, tokens):
        started = time.perf_counter()
        [written] = generate(model, [prompt], max_new_tokens=count, temperature=temperature, description=None)
        seconds.append(time.perf_counter() - started)
    return (seconds[1] - seconds[0]) / max(1, len(written) - 1)


def drafted_seconds(model: Model, prompt: list[int], drafter: Drafter, **settings: Any) -> float | None:
    """Seconds of a token with a drafter, without the first round; None where it was the only one."""
    rounds: list[tuple[float, int]] = []
    speculative_generate(
        model,
        [prompt],
        drafter,
        **settings,
        on_tokens=lambda _, new: rounds.append((time.perf_counter(), len(new))),
    )
    if len(rounds) < 2:
        return None
    return (rounds[-1][0] - rounds[0][0]) / sum(count for _, count in rounds[1:])


def decoded(
    model: Model, documents: list[Document], drafter: Drafter, arguments: argparse.Namespace
) -> dict[int, dict[str, Any]]:
    """Measured speed over plain decoding, by draft length: of all prompts together, and of each."""
    ratios: dict[int, list[tuple[float, float]]] = {length: [] for length in arguments.draft_lengths}
    for document in documents:
        prompt = list(document.tokens[: document.response_start])
        for length in arguments.draft_lengths:
            plain = plain_seconds(model, prompt, arguments.max_new_tokens, arguments.temperature)
            drafted = drafted_seconds(
                model,
                prompt,
                drafter,
                draft_length=length,
                max_new_tokens=arguments.max_new_tokens,
                temperature=arguments.temperature,
            )
            ratios[length] += [] if drafted is None else [(plain, drafted)]
    return {
        length: {
            "measured": sum(plain for plain, _ in pairs) / sum(drafted for _, drafted in pairs),
            "by_prompt": [plain / drafted for plain, drafted in pairs],
        }
        for length, pairs in ratios.items()
        if pairs
    }


def measure(pair: str, model: Model, documents: list[Document], arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict the speed of a pair, and decode."""
    drafter = drafter_of(pair, model)
    # In the middle of a response.
    context = statistics.median(one.response_start + len(one.tokens) for one in documents) / 2
    figures = measure_drafter(model, drafter, {arguments.temperature: documents}, contexts=[round(context)])
    outcome = figures.outcomes[0]
    found = decoded(model, documents, drafter, arguments)
    for length, one in found.items():
        one["predicted"] = outcome.payoff.by_length[length]
        one["predicted_over_measured"] = one["predicted"] / one["measured"]
    return {
        "drafter": figures.drafter,
        "context": round(context),
        "acceptance": outcome.payoff.acceptance,
        "verdict": outcome.payoff.verdict,
        "milliseconds": {
            "plain": 1000 * outcome.costs.plain,
            "draft": {count: 1000 * seconds for count, seconds in outcome.costs.draft.items()},
            "verify": {count: 1000 * seconds for count, seconds in outcome.costs.verify.items()},
            "catch_up": 1000 * outcome.costs.catch_up,
        },
        "draft_lengths": found,
        "rule": outcome.rule,
        "settings": vars(arguments)
        | {"model": model.source, "pairs": [Path(pair).name], "fingerprint": model.fingerprint},
        "versions": versions(),
        "machine": machine(),
    }


def main() -> None:
    """Measure, print the summary, and add it to the result."""
    arguments = options(
        __doc__,
        model="smollm2-135m",
        pairs=["skip", "self", "cut"],
        prompts=4,
        max_new_tokens=48,
        draft_lengths=[1, 4],
        temperature=0.0,
        threads=2,
        cpu_time=0,
        seed=0,
    )
    if arguments.cpu_time:
        time.perf_counter = time.process_time
    model = named(arguments.model)
    documents = load_data(
        "reasoning-gym:gsm_symbolic",
        model,
        arguments.prompts,
        arguments.seed,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        rewrite=True,
    )
    for pair in arguments.pairs:
        found = measure(pair, model, documents, arguments)
        pair = Path(pair).name if model.source == "smollm2-135m" else f"{model.source} with {Path(pair).name}"
        print(f"{pair}: {found['verdict']}")
        for length, one in found["draft_lengths"].items():
            print(f"  draft length {length}: predicted {one['predicted']:.2f}, measured {one['measured']:.2f}")
        name = pair if arguments.temperature == 0 else f"{pair}, temperature {arguments.temperature:g}"
        add_part("drafters", "payoff", {name: found})


if __name__ == "__main__":
    main()
