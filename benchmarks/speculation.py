"""Acceptance without decoding, proved by decoding: predicted against decoded rounds, plain against drafted text.

    python benchmarks/speculation.py [--model smollm2-135m] [--skip attention:6,7,10-12,22,25,26,28,29] [--prompts 50]
        [--max-new-tokens 48] [--draft-lengths 4]
    python benchmarks/speculation.py --hybrids runs/quickstart/student runs/qwen3/run/student [--repeats 60]
        [--threads 2]

Each prompt is answered plainly and then with the draft, greedily and one at a time, so that both see the same machine;
one teacher-forced pass over the plain text predicts how many tokens every round accepts. A difference is excused only
where the two largest logits, of the model or of the draft, are within 1e-4; these places are counted. The result is
written to benchmarks/results/speculation.json.

With `--hybrids`, only the state-space blocks of these models are timed while they verify drafts: all tokens in one
pass, and token by token, each with the roll-back of half of them, against a step of plain decoding. The order changes
in each repeat, and the fastest counts, since other work may share the machine. The result is written to
benchmarks/results/verification.json.
"""

import argparse
import os
import random
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, nullcontext
from typing import Any

# Before torch is imported: threads that wait actively starve each other where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn

from common.result import options, write_result
from radistill import load, load_data
from radistill.models.anatomy import Component
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.caches import RowCache, read_prompts, read_tokens, verifying
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.prediction import find_parting, predict_rounds
from radistill.speculation.presets import describe_mask, parse_mask

NEAR_TIE = 1e-4
SUMS = ("seconds", "tokens", "rounds", "drafted", "accepted")
PROMPT = 256
LENGTHS = (2, 3, 5, 9, 17)


@torch.inference_mode()
def near_ties(model: Model, document: Document, mask: ComponentMask) -> int:
    """Response tokens before which the two largest logits, of the model or of the draft, are within `NEAR_TIE`."""
    batch = collate([document], model.pad_token_id, model.network.device)
    full = response_logits(model.network, batch).logits
    with masked(model, mask):
        draft = response_logits(model.network, batch).logits
    margins = [logits.topk(2).values.diff().abs().squeeze(1) for logits in (full, draft)]
    return int((torch.minimum(*margins) < NEAR_TIE).sum())


def measure(
    model: Model, prompts: list[list[int]], mask: ComponentMask, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Answer every prompt plainly and with drafts, and compare texts and rounds."""
    lengths: list[int] = arguments.draft_lengths
    seconds, tokens, ties, different_texts = 0.0, 0, 0, 0
    unexcused: list[int] = []
    drafted: dict[int, Counter[str]] = {length: Counter() for length in lengths}
    for number, prompt in enumerate(prompts):
        started = time.perf_counter()
        [plain] = generate(model, [prompt], max_new_tokens=arguments.max_new_tokens, description=f"prompt {number}")
        seconds += time.perf_counter() - started
        tokens += len(plain)
        document = Document(str(number), (*prompt, *plain), len(prompt))
        predicted = predict_rounds(model, document, mask, lengths)
        close = near_ties(model, document, mask)
        ties += close
        for length in lengths:
            decoded = speculative_generate(
                model,
                [prompt],
                mask,
                draft_length=length,
                max_new_tokens=arguments.max_new_tokens,
                draft_cache=arguments.draft_cache,
            )
            figures = drafted[length]
            figures.update({name: getattr(decoded, name) for name in SUMS})
            difference = find_parting(model, prompt, plain, decoded.responses[0])
            as_predicted = predicted[length] == decoded.accepted_by_round[0]
            figures["prompts_as_predicted"] += as_predicted
            different_texts += difference is not None
            # Another text has other rounds; the same text may differ in its rounds only where a tie is near.
            excused = difference.margin < NEAR_TIE if difference is not None else as_predicted or close > 0
            if not excused:
                unexcused.append(number)
    for figures in drafted.values():
        figures["tokens_per_second"] = figures["tokens"] / figures["seconds"]
        figures["acceptance_rate"] = figures["accepted"] / figures["drafted"]
        figures["mean_accepted_length"] = figures["accepted"] / figures["rounds"]
        figures["speed_ratio"] = figures["tokens_per_second"] / (tokens / seconds)
    return {
        "prompts": len(prompts),
        "near_ties": ties,
        "different_texts": different_texts,
        "unexcused_prompts": sorted(set(unexcused)),
        "plain": {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds},
        "drafted": drafted,
    }


def ssm_seconds(model: Model, prompt: RowCache, way: str, length: int) -> float:
    """Time in state-space blocks for reading `length` tokens after a prompt, and for rolling half of them back.

    Args:
        model: the hybrid.
        prompt: what it has read; left as it is.
        way: "step", as in plain decoding, with nothing rolled back; "one_pass" or "one_by_one".
        length: number of tokens.
    """
    layers = model.anatomy.ssm_layers
    cache = prompt.fork()
    cache.stepped = set(layers) if way == "one_by_one" else set()
    tokens = torch.randint(model.anatomy.vocab_size, (1, length))
    seconds = [0.0]

    def start(module: nn.Module, arguments: Any) -> None:
        seconds[0] -= time.perf_counter()

    def stop(module: nn.Module, arguments: Any, output: Any) -> None:
        seconds[0] += time.perf_counter()

    with ExitStack() as stack:
        for layer in layers:
            for block in model.anatomy.modules(model.network, layer, Component.SSM):
                stack.callback(block.register_forward_pre_hook(start).remove)
                stack.callback(block.register_forward_hook(stop).remove)
        history = stack.enter_context(nullcontext({}) if way == "step" else verifying(model, cache))
        read_tokens(model, cache, tokens)
    started = time.perf_counter()
    if history:
        cache.roll_back([length // 2], history)
    return seconds[0] + time.perf_counter() - started


@torch.inference_mode()
def measure_ssm_part(model: Model, repeats: int, seed: int) -> dict[str, Any]:
    """The fastest of `repeats` measurements of each kind, and their ratio to a step."""
    runs = [("step", 1), *((way, length) for way in ("one_pass", "one_by_one") for length in LENGTHS)]
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    order = random.Random(seed)
    prompt = RowCache(model.network.config, 1)
    read_prompts(model, prompt, [torch.randint(model.anatomy.vocab_size, (PROMPT,)).tolist()])
    for _ in range(repeats):
        for way, length in order.sample(runs, len(runs)):
            spent = ssm_seconds(model, prompt, way, length)
            seconds[way][length] = min(spent, seconds[way].get(length, spent))
    step = seconds.pop("step")[1]
    return {
        "model_fingerprint": model.fingerprint,
        "blocks": len(model.anatomy.ssm_layers),
        "step_seconds": step,
        "seconds_by_tokens": {way: dict(sorted(found.items())) for way, found in seconds.items()},
        "five_tokens_over_one_step": {way: found[5] / step for way, found in seconds.items()},
    }


def main() -> None:
    """Measure, print the summary, and write the result."""
    arguments = options(
        __doc__,
        model="smollm2-135m",
        skip="attention:6,7,10-12,22,25,26,28,29",
        prompts=50,
        max_new_tokens=48,
        draft_lengths=[4],
        draft_cache="separate",
        hybrids=[""],
        repeats=60,
        threads=2,
        seed=0,
    )
    if any(arguments.hybrids):
        models = [load(hybrid) for hybrid in arguments.hybrids]
        part = {
            model.network.config.model_type: measure_ssm_part(model, arguments.repeats, arguments.seed)
            for model in models
        }
        kept = {name: getattr(arguments, name) for name in ("repeats", "threads", "seed")}
        write_result("verification", ssm_part=part, prompt=PROMPT, **kept)
        for name, figures in part.items():
            print(f"{name}: five tokens over one step: {figures['five_tokens_over_one_step']}")
        return
    model = load(arguments.model)
    mask = parse_mask(arguments.skip, model)
    documents = load_data(
        "reasoning-gym:gsm_symbolic", model, count=arguments.prompts, seed=arguments.seed, max_new_tokens=1
    )
    result = write_result(
        "speculation",
        **measure(model, [list(d.tokens[: d.response_start]) for d in documents], mask, arguments),
        mask=describe_mask(mask),
        **{name: getattr(arguments, name) for name in ("max_new_tokens", "draft_cache", "seed")},
        model_fingerprint=model.fingerprint,
    )
    for length, figures in result["drafted"].items():
        print(
            f"draft length {length}: {figures['prompts_as_predicted']} of {result['prompts']} prompts as predicted, "
            f"{figures['mean_accepted_length']:.2f} accepted a round, {figures['speed_ratio']:.2f} x plain speed"
        )
    print(f"near ties: {result['near_ties']}; unexcused: {result['unexcused_prompts']}")


if __name__ == "__main__":
    main()
