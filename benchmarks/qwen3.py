"""A small Qwen3 that can do something loses half of its attentions to Gated DeltaNet, and keeps doing it.

    python benchmarks/qwen3.py [--steps 1200] [--folder runs/qwen3]

First, a Qwen3 of some ten million parameters is trained on exercises that are made up as it reads them, over bytes:

- `b7 = 42; k1 = 90; … ? k1 b7` (look up one to four numbers among up to sixteen),
- `reverse: kqwz` and `sort: 6 2 9 4` (write letters or digits in another order).

Then four of its eight attentions are replaced, in two hybrids: by what a fitted block can stand in for, with fitted
blocks, and by what the model can do without, starting from `zero` (RAD as published). Both are distilled on the same
exercises, at most 200,000 tokens. Reported are KL and the share of new exercises that are solved, of each kind, by the
model and by both hybrids. What is finished in the folder is used again.

The result is written to benchmarks/results/qwen3.json.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait actively starve each other where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.result import ROOT, options, write_result
from radistill import load
from radistill.console import progress
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example
from radistill.distillation.muon import Muon
from radistill.files import read_json, write_text
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from radistill.statistics import wilson

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
KINDS = ("look up", "reverse", "sort")
ROWS = 32
PER_KIND = 128

DOCUMENTS = 1600
RECIPE = """\
model: {model}
threads: 2
data:
  kind: jsonl
  path: {data}
  train: 1600
  calibration: 96
  heldout: 96
  responses: {{source: data}}
diagnose: {{budget: 4, by: replaceability}}
align: {{steps: 240, tokens_per_batch: 1024}}
distill: {{steps: 150, tokens_per_batch: 1280}}
arms:
  rad: {{by: redundancy, init: zero, align: null, rate: 1.0e-3}}
evaluate: {{exact_match: false}}
"""


def exercise(pick: random.Random, kind: str, size: int) -> tuple[str, str]:
    """A question and its answer; `size` is how many numbers there are, up to sixteen."""
    if kind == "look up":
        names = pick.sample([letter + digit for letter in LETTERS for digit in DIGITS], size)
        numbers = {name: str(pick.randint(10, 99)) for name in names}
        asked = pick.sample(names, min(pick.randint(1, 4), size))
        stated = "; ".join(f"{name} = {number}" for name, number in numbers.items())
        return f"{stated} ? {' '.join(asked)}", " ".join(numbers[name] for name in asked)
    if kind == "reverse":
        word = "".join(pick.choice(LETTERS) for _ in range(pick.randint(3, 8)))
        return f"reverse: {word}", word[::-1]
    digits = [pick.choice(DIGITS) for _ in range(pick.randint(3, 7))]
    return f"sort: {' '.join(digits)}", " ".join(sorted(digits))


def exercises(seed: str, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, str]]:
    """Endless (question, answer), `ROWS` of a kind in turn; two seeds share none but by chance."""
    pick = random.Random(f"qwen3 {seed}")
    while True:
        for kind in kinds:
            size = pick.randint(2, 16)
            for _ in range(ROWS):
                yield exercise(pick, kind, size)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and those that a conversation needs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # llama.cpp reads no vocabulary without merges: one that no exercise has.
    vocabulary = {character: index for index, character in enumerate([*alphabet, "~~"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("~", "~")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, START, END])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=TEMPLATE)


def new_model() -> Qwen3ForCausalLM:
    """Eight layers of width 320, 9.3 million parameters, random."""
    config = Qwen3Config(
        vocab_size=272,
        hidden_size=320,
        intermediate_size=960,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=257,
        eos_token_id=259,
        bos_token_id=None,
    )
    network = Qwen3ForCausalLM(config)
    network.generation_config.eos_token_id = 259
    return network


def batch(tokenizer: PreTrainedTokenizerFast, source: Iterator[tuple[str, str]]) -> tuple[torch.Tensor, ...]:
    """Token ids, mask and labels, [rows, time]; only answers count."""
    rows = []
    for _ in range(ROWS):
        question, answer = next(source)
        prompt = tokenizer.encode(f"{START}user\n{question}{END}\n{START}assistant\n")
        rows.append((prompt, tokenizer.encode(f"{answer}{END}")))
    time_steps = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((ROWS, time_steps), 257)
    labels = torch.full((ROWS, time_steps), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, ids.ne(257).long(), labels


def train(folder: Path, steps: int) -> dict[str, Any]:
    """Train the model and save it; what it cost."""
    record = folder / "training.json"
    if record.is_file():
        return dict(read_json(record))
    torch.manual_seed(0)
    tokenizer, network = byte_tokenizer(), new_model().train()
    matrices = [value for name, value in network.named_parameters() if value.ndim == 2 and "embed" not in name]
    rest = [value for value in network.parameters() if not any(value is matrix for matrix in matrices)]
    optimisers = [Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, each.defaults["lr"], steps, pct_start=0.05, cycle_momentum=False)
        for each in optimisers
    ]
    source, tokens, started, loss = exercises("train"), 0, time.perf_counter(), torch.zeros(())
    with progress("training Qwen3", steps, "steps") as advance:
        for _ in range(steps):  # each of one kind and size, so that hardly anything is padding
            ids, mask, labels = batch(tokenizer, source)
            logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            network.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for each, schedule in zip(optimisers, schedules, strict=True):
                each.step()
                schedule.step()
            tokens += int(mask.sum())
            advance(1, f"loss {loss.item():.3f}")
    network.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    made = {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started),
        "parameters": sum(value.numel() for value in network.parameters()),
        "loss": round(loss.item(), 4),
    }
    write_text(record, json.dumps(made))
    return made


def solved(model: Model) -> dict[str, dict[str, Any]]:
    """The share of new exercises of each kind that a model solves, greedily, with a 95 % interval."""
    result = {}
    for kind in KINDS:
        asked = exercises("test", (kind,))
        questions = [next(asked) for _ in range(PER_KIND)]
        prompts = [prompt_tokens(Example.of_user("", question), model.tokenizer) for question, _ in questions]
        written = generate(model, prompts, max_new_tokens=20, batch_size=50, description=None)
        answers = [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        right = sum(given.strip() == answer for given, (_, answer) in zip(answers, questions, strict=True))
        low, high = wilson(right, PER_KIND)
        result[kind] = {"solved": right, "of": PER_KIND, "interval": [round(low, 3), round(high, 3)]}
    total = sum(figures["solved"] for figures in result.values())
    return result | {"all": {"solved": total, "of": PER_KIND * len(KINDS)}}


def convert_it(folder: Path) -> dict[str, Any]:
    """Two hybrids of the trained model: their layers, KL, and the exercises that they solve."""
    data = folder / "exercises.jsonl"
    asked = exercises("distil")
    rows = [next(asked) for _ in range(DOCUMENTS + 200)]
    lines = [json.dumps({"prompt": question, "response": answer}) for question, answer in rows]
    write_text(data, "".join(f"{line}\n" for line in lines))
    recipe = folder / "recipe.yaml"
    write_text(recipe, RECIPE.format(model=folder / "model", data=data))
    out = run(load_recipe(recipe), folder / "run")
    evaluation = read_json(out / "evaluation.json")
    hybrids = {"replaceability, fitted": ("hybrid", out), "redundancy, zero": ("rad", out / "arms" / "rad")}
    return {
        name: {
            "replace": read_json(place / "plan.json")["replace"],
            **{figure: evaluation[key][figure] for figure in ("kl", "agreement", "kv_bytes_per_token")},
            "exercises": solved(load(place / "student")),
        }
        for name, (key, place) in hybrids.items()
    } | {"distilled_tokens": read_json(out / "distill.json")["tokens"]}


def main() -> None:
    """Train, convert twice, ask all three."""
    given = options(__doc__, steps=1200, folder=str(ROOT / "runs" / "qwen3"), seed=0, threads=2)
    folder = Path(given.folder)
    training = train(folder, given.steps)
    base = {"exercises": solved(load(folder / "model"))}
    hybrids = convert_it(folder)
    whole = base["exercises"]["all"]["solved"]
    for figures in hybrids.values():
        if isinstance(figures, dict):
            figures["kept"] = round(figures["exercises"]["all"]["solved"] / whole, 3)
    result = write_result("qwen3", training=training, base=base, hybrids=hybrids)
    print(json.dumps(result["base"]), json.dumps(result["hybrids"], indent=1))


if __name__ == "__main__":
    main()
