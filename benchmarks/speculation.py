"""Acceptance without decoding, proved by decoding: predicted against decoded rounds, plain against drafted text.

    python benchmarks/speculation.py [--model smollm2-135m] [--skip attention:6,7,10-12,22,25,26,28,29] [--prompts 50]
        [--max-new-tokens 48] [--draft-lengths 4]

Each prompt is answered plainly and then with the draft, greedily and one at a time, so that both see the same machine;
one teacher-forced pass over the plain text predicts how many tokens every round accepts. A difference is excused only
where the two largest logits, of the model or of the draft, are within 1e-4; these places are counted. The result is
written to benchmarks/results/speculation.json.
"""

import argparse
import time
from collections import Counter
from typing import Any

import torch

from common.result import options, write_result
from radistill import load, load_data
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.logits import response_logits
from radistill.models.sequences import Document, collate
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask, masked
from radistill.speculation.prediction import find_parting, predict_rounds
from radistill.speculation.presets import describe_mask, parse_mask

NEAR_TIE = 1e-4
SUMS = ("seconds", "tokens", "rounds", "drafted", "accepted")


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
        seed=0,
    )
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
