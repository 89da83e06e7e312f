"""Text by a server against the built-in generation: the same greedy tokens, and how long each takes.

    python benchmarks/server_text.py [--count 64] [--most 128] [--vllm build/serve/bin/python]

SmolLM2-135M answers questions whose answers differ much in length: by the built-in generation in batches, and by
llama.cpp's server in as many slots, both in float32 with all threads. With `--vllm`, the Python of the environment that
`make serve-check` builds, vLLM's server answers too. Where two texts part, the built-in model's two largest logits tell
whether it was a near tie. vLLM's server also fills a stored teacher, which is compared with our own.

The result is written to benchmarks/results/server_text.json. The exit status is 1 if a text differs but for a near tie.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common.result import add_part, options
from radistill import load
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, store_teacher
from radistill.export.engines.llama_cpp import LlamaCpp, as_gguf
from radistill.export.engines.vllm import vllm_server
from radistill.models.endings import turn_end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.models.server.served import Server
from radistill.models.server.settings import ServerSettings
from radistill.provenance import machine, versions
from radistill.speculation.prediction import find_parting
from serving import NEAR_TIE, VLLM_SETTINGS

CONTEXT = 512
TOP_K = 64
SHORT = "What is {0} + {1}? Answer with the number only."
LONG = "Tell a story about {0} cats and {1} dogs."
LIST = "List {1} animals, and say of each one why it is useful, in {0} words."


def questions(count: int) -> list[str]:
    """Questions in turn with answers of a word, a list and a story."""
    return [(SHORT, LIST, LONG)[at % 3].format(2 + at % 9, 3 + at % 7) for at in range(count)]


def compared(model: Model, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]) -> dict[str, int]:
    """How many texts are the same, how many part at a near tie, and how many elsewhere."""
    found = {"texts": len(prompts), "equal": 0, "near_ties": 0, "different": 0}
    for prompt, one, two in zip(prompts, ours, theirs, strict=True):
        parting = find_parting(model, prompt, one, two)
        tie = parting is not None and parting.margin < NEAR_TIE["float32"]
        found["equal" if parting is None else "near_ties" if tie else "different"] += 1
    return found


def by_server(address: str, model: Model, prompts: list[list[int]], given: Any, ours: Any) -> dict[str, Any]:
    """Figures of one server: texts compared with `ours`, and seconds."""
    server = Server(ServerSettings(url=address, requests=given.slots), model.tokenizer)
    started = time.perf_counter()
    theirs = generate(
        model, prompts, max_new_tokens=given.most, stops=turn_end_tokens(model), server=server, description=None
    )
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "tokens": sum(map(len, theirs)), **compared(model, prompts, ours, theirs)}


def stored(address: str, model: Model, documents: list[Document]) -> dict[str, float]:
    """A teacher store by the server against our own: KL between the two in nats a token, and largest differences."""
    with tempfile.TemporaryDirectory() as place:
        stores: list[StoredTeacher] = []
        seconds = []
        for name, server in (("own", None), ("served", ServerSettings(url=address, requests=8))):
            started = time.perf_counter()
            settings = TeacherStoreSettings(top_k=TOP_K, server=server)
            stores.append(
                store_teacher(
                    model, documents, settings, vocabulary=model.anatomy.vocab_size, folder=Path(place) / name
                )
            )
            seconds.append(round(time.perf_counter() - started, 1))
        own, served = (store.of(documents) for store in stores)
    # Over the tokens that both have kept and the rest as one: the k-th may be another one in a tie.
    same = (own.ids.sort(dim=1).values == served.ids.sort(dim=1).values).all(dim=1)
    logs = [torch.cat([part.log_probabilities.gather(1, part.ids.argsort(dim=1)), part.tail[:, None]], dim=1)[same]
            for part in (own, served)]  # fmt: skip
    p, q = (part.double() for part in logs)
    return {
        "tokens": len(same),
        "tokens_with_the_same_ids": int(same.sum()),
        "likeliest_the_same": int((own.best == served.best).sum()),
        "kl_nats_a_token": float((p.exp() * (p - q) - p.exp() + q.exp()).sum(dim=1).mean()),
        "largest_log_probability_difference": float((p - q)[:, :-1].abs().max()),
        "seconds_own": seconds[0],
        "seconds_served": seconds[1],
    }


def main() -> None:
    """Measure."""
    given = options(__doc__, vllm="", count=64, most=128, slots=16, threads=2, seed=0)
    model = load("smollm2-135m")
    prompts = [prompt_tokens(Example.of_user("", text), model.tokenizer) for text in questions(given.count)]
    started = time.perf_counter()
    ours = generate(
        model, prompts, max_new_tokens=given.most, batch_size=given.slots, stops=turn_end_tokens(model),
        description=None,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    print(f"built in: {seconds:.0f} s", file=sys.stderr)
    asked = {"prompts": given.count, "max_new_tokens": given.most, "at_once": given.slots, "threads": given.threads}
    lengths = sorted(map(len, ours))
    built_in = {"seconds": round(seconds, 1), "tokens": sum(lengths), "median_length": lengths[len(lengths) // 2]}
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if given.vllm:
            os.environ |= VLLM_SETTINGS
            model.save(Path(place) / "model")
            asked_of_it = ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-logprobs", str(TOP_K)]
            with vllm_server(given.vllm, Path(place) / "model", *asked_of_it, "--enforce-eager") as vllm:
                parts["vllm"] = by_server(vllm.address, model, prompts, given, ours)
                documents = [
                    Document(str(at), (*prompt, *text), len(prompt))
                    for at, (prompt, text) in enumerate(zip(prompts, ours, strict=True))
                ]
                parts["teacher_store_by_vllm"] = stored(vllm.address, model, documents[:48])
        else:
            path = as_gguf(model, Path(place) / "model.gguf", "float32")
            engine = LlamaCpp(path, CONTEXT, threads=given.threads, slots=given.slots)
            parts["llama.cpp"] = by_server(engine.address, model, prompts, given, ours)
    for name, part in parts.items():
        if "texts" in part:
            part |= {"built_in": built_in, "times_as_fast": round(seconds / part["seconds"], 2), **asked}
        add_part("server_text", name, part | {"versions": versions(), "machine": machine()})
    print(json.dumps(parts, indent=1))
    sys.exit(any(part.get("different") for part in parts.values()))


if __name__ == "__main__":
    main()
