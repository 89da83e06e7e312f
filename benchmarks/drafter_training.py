"""What training does to a drafter, by loss and by whose text it reads; and the best one in the engines.

    python benchmarks/drafter_training.py [--recipe benchmarks/recipes/drafters.yaml] [--set FIELD=VALUE …] [--check 4]
        [--threads 2]
    python benchmarks/drafter_training.py --target TARGET.gguf --draft DRAFT.gguf [--name PAIR]

The recipe is run as `radistill run` runs it, in runs/NAME; what is finished there is kept. Acceptance is measured
by teacher-forced passes over held-out responses of the target, before and after training: greedily on its greedy
responses, and at temperature 1 on responses that it sampled there (`measure.acceptance_of`); intervals are bootstrapped
over the documents. Then the best arm drafts in transformers, llama.cpp and here (`radistill drafter check`).

With a pair of GGUF files, llama.cpp alone decodes: plainly and with the drafter in turns. What it costs there is timed
with llama.cpp too (a step of each, and steps of the target over several texts at once, because a verification, unlike
the reading of a prompt, has logits at every token), acceptance comes from our passes over its plain texts, and the
speed that follows is set beside the one that was measured.

The parts `training` (`training of NAME` for another recipe NAME), `engines` and `llama_cpp` of
benchmarks/results/drafters.json are written.
"""

import argparse
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from common.result import ROOT, add_part, options
from radistill import load, load_data
from radistill.data.records import DataSplits
from radistill.export.drafter_check import check_engines
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.pipeline.run import run
from radistill.provenance import machine, versions
from radistill.runs.contents import read_content
from radistill.runs.folder import MAIN, RunFolder
from radistill.runs.recipe import load_recipe
from radistill.speculation.measure import Acceptance, acceptance_of
from radistill.speculation.payoff import Payoff, RoundCosts

CHECKED = (1, 2, 3, 5, 9, 17)
REPEATS = 3
STEPS = 16
TOKENS = 96


def acceptances(target: Model, drafter: Model, documents: dict[float, list[Document]]) -> dict[str, Any]:
    """Rate and accepted tokens of a round of four, with intervals, by rule and temperature."""
    found = {}
    for temperature, texts in documents.items():
        for rule, tokens in acceptance_of(target, drafter, texts, temperature).items():
            one = Acceptance.of(temperature, rule, tokens)
            found[f"{rule} at {temperature:g}"] = {"rate": asdict(one.rate), "of_4": asdict(one.accepted[4])}
    return found


def training(given: argparse.Namespace) -> None:
    """Train every arm, and measure before and after."""
    recipe = load_recipe(given.recipe, [one for one in given.set if one])
    name = Path(given.recipe).stem
    folder = RunFolder(run(recipe, ROOT / "runs" / name))
    target = load(recipe.teacher or recipe.model, dtype=recipe.dtype)
    greedy = DataSplits.load(folder.data()).documents("heldout")
    prompts = [document.tokens[: document.response_start] for document in greedy]
    most = recipe.data.responses.max_new_tokens
    answers = generate(target, prompts, max_new_tokens=most, temperature=1.0, seed=1, batch_size=24)
    sampled = [
        Document(document.id, (*prompt, *answer), len(prompt))
        for document, prompt, answer in zip(greedy, prompts, answers, strict=True)
    ]
    documents = {0.0: greedy, 1.0: sampled}
    found: dict[str, Any] = {"before": acceptances(target, load(folder.hybrid().start), documents)}
    for arm in recipe.hybrids:
        files = folder.hybrid(arm.name)
        curve = read_content(files.distill)
        assert arm.distill is not None
        found[arm.name] = acceptances(target, load(files.student), documents) | {
            "loss": arm.distill.loss.kind,
            "on_policy": arm.distill.on_policy.share if arm.distill.on_policy else 0.0,
            "tokens": curve["tokens"],
            "seconds": curve["seconds"],
        }
        print(arm.name, {key: one["rate"] for key, one in found[arm.name].items() if isinstance(one, dict)})
    part = "training" if name == "drafters" else f"training of {name}"
    add_part("drafters", part, {"arms": found, "versions": versions(), "machine": machine()})
    if not given.check:
        return
    best = max(
        (name for name in found if name != "before"), key=lambda name: found[name]["sampled at 1"]["rate"]["value"]
    )
    checked = check_engines(target, load(folder.hybrid(best).student), prompts[: given.check], draft_length=3)
    add_part(
        "drafters",
        "engines",
        {best if best != MAIN else "forward-kl": checked.to_json() | {"draft": f"{best} of {given.recipe}"}},
    )


def costs_of(target: Path, draft: Path, prompt: list[int], threads: int) -> RoundCosts:
    """What llama.cpp needs for a step of each, and for the target's pass over a few tokens."""

    def median_of(path: Path, texts: int) -> float:
        # No more slots than texts: attention runs over the room of all.
        engine = LlamaCpp(path, len(prompt) + TOKENS, exact=False, threads=threads, slots=texts)
        return statistics.median(step_of(engine, prompt, texts) for _ in range(REPEATS))

    step = median_of(draft, 1)
    passes = {count: median_of(target, count) for count in CHECKED}
    # One more token is drafted than proposed: the last one is read as well.
    draft_seconds = {count: (count + 1) * step for count in (1, 16)}
    return RoundCosts(len(prompt), 1, passes[1], draft_seconds, passes, 0.0)


def step_of(engine: LlamaCpp, prompt: list[int], texts: int) -> float:
    """Seconds of a step of several texts at once, each with logits of its own."""

    def milliseconds(_: int) -> float:
        # The clock of each runs over its steps after the first token.
        timings = engine.greedy(prompt, STEPS + 1, ignore_eos=True, cache_prompt=True)["timings"]
        return float(timings["predicted_ms"])

    list(engine.at_once(milliseconds, range(texts)))  # now every one has read the prompt
    return statistics.mean(one for _, one in engine.at_once(milliseconds, range(texts))) / STEPS / 1000


def in_llama_cpp(given: argparse.Namespace) -> None:
    """Decode a pair of GGUF files with llama.cpp alone, and predict it."""
    target, draft = Path(given.target), Path(given.draft)
    model = load(target)
    documents = load_data("reasoning-gym:gsm_symbolic", model, given.check, seed=3, max_new_tokens=1)
    prompts = [list(document.tokens[: document.response_start]) for document in documents]
    longest = max(map(len, prompts)) + TOKENS + 20
    plain, drafted, texts = {}, {}, {}
    engines = {0: LlamaCpp(target, longest, exact=False, threads=given.threads)}
    engines |= {
        length: LlamaCpp(target, longest, draft, length, exact=False, threads=given.threads)
        for length in given.draft_lengths
    }
    for number, prompt in enumerate(prompts):
        for length, engine in engines.items():
            answer = engine.greedy(prompt, TOKENS, ignore_eos=True)
            texts[length, number] = answer["tokens"]
            (drafted if length else plain)[length, number] = answer["timings"]
            if length and "draft_n" not in answer["timings"]:
                raise SystemExit(f"llama.cpp drafts nothing for {target.name} with {draft.name}")
    engines.clear()
    costs = costs_of(target, draft, prompts[0], given.threads)
    own = [Document(str(n), (*prompt, *texts[0, n]), len(prompt)) for n, prompt in enumerate(prompts)]
    tokens = acceptance_of(model, load(draft), own, 0.0)["greedy"]
    payoff = Payoff.of(tokens, costs)
    base = sum(one["predicted_ms"] for one in plain.values())
    found = {}
    for length in given.draft_lengths:
        turns = [one for (drafts, _), one in drafted.items() if drafts == length]
        measured = base / sum(one["predicted_ms"] for one in turns)
        found[length] = {
            "measured": measured,
            "predicted": payoff.by_length[length],
            "predicted_over_measured": payoff.by_length[length] / measured,
            "accepted": sum(one["draft_n_accepted"] for one in turns),
            "drafted": sum(one["draft_n"] for one in turns),
            "same_texts": sum(texts[length, n] == texts[0, n] for n in range(len(prompts))),
        }
        print(length, found[length])
    print(payoff.verdict)
    figures = {
        "target": target.name,
        "draft": draft.name,
        "prompts": len(prompts),
        "plain_tokens_per_second": 1000 * sum(one["predicted_n"] - 1 for one in plain.values()) / base,
        "acceptance": payoff.acceptance,
        "verdict": payoff.verdict,
        "costs": asdict(replace(costs, turns=())),
        "draft_lengths": found,
        "versions": versions(),
        "machine": machine(),
    }
    add_part("drafters", "llama_cpp", {given.name or f"{target.stem} with {draft.stem}": figures})


def main() -> None:
    """Either the training, or one pair of files in llama.cpp."""
    given = options(
        __doc__,
        recipe=str(ROOT / "benchmarks" / "recipes" / "drafters.yaml"),
        set=[""],
        check=4,
        threads=2,
        target="",
        draft="",
        name="",
        draft_lengths=[1, 2, 3, 4],
        seed=0,
    )
    torch.set_num_threads(given.threads)
    if given.target:
        in_llama_cpp(given)
    else:
        training(given)


if __name__ == "__main__":
    main()
