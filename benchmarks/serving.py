"""Students in the engines themselves: vLLM and llama.cpp write what transformers writes.

    make serve-check        # builds an environment for vLLM, and runs this
    python benchmarks/serving.py --vllm build/serve/bin/python [--granite FOLDER] [--qwen FOLDER]

Two trained students are served: the quick start's (granite-hybrid) and that of benchmarks/qwen3.py (qwen3.5); either is
made first if its folder is not there. A batch of prompts of different length goes through vLLM, greedily:

- in float32, where its kernels have it, each token must be transformers' choice;
- in bfloat16 (its kernel for Gated DeltaNet has nothing else on a CPU), vLLM reads what transformers wrote in bfloat16,
  and must find the same token likeliest at 97 % of the places at least.

llama.cpp reads a float32 GGUF and must choose the same tokens. A place where transformers' two likeliest tokens are
less than `NEAR_TIE` apart counts as a near tie, and a text is not followed beyond one that went the other way. At last,
vLLM's and llama.cpp's servers answer one request each by the OpenAI interface.

Then a plain model, SmolLM2-135M, is served with a drafter: the same model with layers cut out. vLLM (`draft_model`),
transformers (`assistant_model`), llama.cpp and Radistill must write the model's own tokens with it.

The result is written to benchmarks/results/serving.json; with `--students 0`, only the part on the drafter. The exit
status is 1 if anything disagrees.
"""

import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common.result import ROOT, add_part, options, write_result
from qwen3 import exercises
from radistill import convert, load
from radistill.data.documents import prompt_tokens
from radistill.data.examples import Example
from radistill.export import write_gguf
from radistill.export.drafter_check import check_engines
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.export.engines.vllm import vllm_server
from radistill.models.endings import end_tokens
from radistill.models.loading import Model

COUNT = 48
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.05}
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}
LEAST = 0.97
CUT = [12, 14, 16, 18, 20]
"""Layers that the drafter does without; it is not trained."""
DRAFT_LENGTH = 3
VLLM = Path(__file__).parent / "common" / "vllm"
VLLM_SETTINGS = {"PYTHONPATH": str(VLLM), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Of its processes: a gibibyte of cache is plenty here, and what goes well need not be told."""
QUESTIONS = {
    "granite-hybrid": [
        "What is the capital of France?",
        "Name three rivers.",
        "Why does water boil at 100 degrees at sea level, and not at 90 or at 110?",
        "Anna has 3 apples and buys 5 more. Then she gives half of what she has to Ben. How many are left?",
        "Hi",
    ],
    "qwen3.5": [question for question, _ in islice(exercises("serving", ("reverse", "sort")), 24, 40)],
}


def written(model: Model, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """Transformers' greedy tokens after each prompt, up to its end, their log-probabilities, and how far ahead of the
    next token each was."""
    tokens, chances, margins = [], [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False)[
            0
        ]
        with torch.no_grad():
            logits = model.network(whole[None]).logits[0, len(prompt) - 1 : -1].float()
        top = logits.topk(2).values
        new = whole[len(prompt) :]
        tokens.append(new.tolist())
        chances.append(logits.log_softmax(-1).gather(1, new[:, None])[:, 0].tolist())
        margins.append((top[:, 0] - top[:, 1]).tolist())
    return tokens, chances, margins


def compared(
    ours: list[list[int]], theirs: list[list[int]], margins: list[list[float]], tie: float, forced: bool
) -> dict[str, int]:
    """Counts of tokens; a text that is not forced is left at its first difference."""
    total = equal = ties = 0
    for tokens, found, margin in zip(ours, theirs, margins, strict=True):
        for place, token in enumerate(tokens):
            total += 1
            if place < len(found) and found[place] == token:
                equal += 1
                continue
            near = margin[place] < tie
            ties += near
            if not forced and near:
                total -= 1  # it is told apart as a near tie
            if not forced:
                break
    return {"tokens_compared": total, "tokens_equal": equal, "near_ties": ties}


def by_vllm(python: str, folder: Path, prompts: list[list[int]], dtype: str) -> dict[str, Any]:
    """The figures of one student in one number format."""
    model = load(folder, dtype=dtype)
    tokens, chances, margins = written(model, prompts)
    texts = [prompt + new for prompt, new in zip(prompts, tokens, strict=True)]
    asked = {"folder": str(folder), "dtype": dtype, "prompts": prompts, "count": COUNT, "texts": texts}
    found = answer_of_vllm(python, asked)
    forced = dtype != "float32"
    likeliest = [line[len(prompt) - 1 :] for line, prompt in zip(found["likeliest"], prompts, strict=True)]
    theirs = likeliest if forced else found["written"]
    same = [
        abs(a - b)
        for mine, other, one, two in zip(tokens, found["written"], chances, found["log_probabilities"], strict=True)
        for (x, y), a, b in zip(zip(mine, other, strict=False), one, two, strict=False)
        if x == y
    ]
    return {
        "engine": "vllm",
        "version": found["version"],
        "dtype": dtype,
        "teacher_forced": forced,
        **compared(tokens, theirs, margins, NEAR_TIE[dtype], forced),
        "log_probability_difference": round(max(same), 6),
    }


def with_drafter(python: str, place: Path) -> list[dict[str, Any]]:
    """A plain model and a drafter cut from it in every engine: vLLM here, the others as `radistill drafter check`."""
    target = load("smollm2-135m")
    draft = convert(target, CUT, target="cut", init="zero")
    folders = {"target": place / "target", "draft": place / "draft"}
    target.save(folders["target"])
    draft.save(folders["draft"])
    prompts = [prompt_tokens(Example.of_user("", text), target.tokenizer) for text in QUESTIONS["granite-hybrid"]]
    tokens, _, margins = written(target, prompts)
    asked = {"folder": str(folders["target"]), "draft": str(folders["draft"]), "draft_length": DRAFT_LENGTH}
    asked |= {"dtype": "float32", "prompts": prompts, "count": COUNT, "texts": []}
    found = answer_of_vllm(python, asked)
    pair = {"target": f"llama, with a drafter of {draft.anatomy.num_layers} of its layers", "dtype": "float32"}
    equal = compared(tokens, found["written"], margins, NEAR_TIE["float32"], forced=False)
    rows = [
        {
            "engine": "vllm",
            "version": found["version"],
            **equal,
            "differs": equal["tokens_equal"] < equal["tokens_compared"],
            **{name: found[name] for name in ("drafted", "accepted", "rounds")},
        }
    ]
    for served in check_engines(target, draft, prompts, draft_length=DRAFT_LENGTH, max_new_tokens=COUNT).engines:
        if served.ran:
            counts = {"tokens_compared": served.tokens, "tokens_equal": served.equal, "near_ties": served.near_ties}
            counts |= {"drafted": served.drafted, "accepted": served.accepted, "rounds": served.rounds}
            counts["differs"] = served.different > 0
            rows.append({"engine": served.engine, "version": served.version, **counts})
    return [pair | row for row in rows]


def answer_of_vllm(python: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `tokens.py` answers in vLLM's environment."""
    with tempfile.TemporaryDirectory() as place:
        request, answer = Path(place) / "request.json", Path(place) / "answer.json"
        request.write_text(json.dumps(asked), encoding="utf-8")
        subprocess.run([python, str(VLLM / "tokens.py"), str(request), str(answer)], check=True)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def by_llama_cpp(folder: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """The figures of one student in llama.cpp, and whether its OpenAI interface says the same."""
    model = load(folder)
    tokens, _, margins = written(model, prompts)
    expected = model.tokenizer.decode(tokens[0], skip_special_tokens=True)
    # llama.cpp does not hand out the token that ends a text.
    tokens = [new[:-1] if new[-1] in end_tokens(model) else new for new in tokens]
    theirs = []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "student.gguf"
        write_gguf(folder, path, "float32")
        engine = LlamaCpp(path, threads=torch.get_num_threads())
        for prompt, new in zip(prompts, tokens, strict=True):
            theirs.append(engine.greedy(prompt, len(new))["tokens"])
        openai = engine.ask(
            "/v1/completions", {"prompt": model.tokenizer.decode(prompts[0]), "max_tokens": COUNT, "temperature": 0}
        )["choices"][0]["text"]
    return {
        "engine": "llama.cpp",
        "version": engine.version,
        "dtype": "float32",
        "teacher_forced": False,
        **compared(tokens, theirs, margins, NEAR_TIE["float32"], forced=False),
        "openai_interface": openai.strip() == expected.strip(),
    }


def vllm_serve(python: str, folder: Path, prompt: list[int], dtype: str, expected: str) -> bool:
    """Whether vLLM's server answers one request by the OpenAI interface as transformers does."""
    with vllm_server(python, folder, "--dtype", dtype, "--max-model-len", "512", "--enforce-eager") as server:
        content = {"model": str(folder), "prompt": prompt, "max_tokens": COUNT, "temperature": 0}
        answer = server.ask("/v1/completions", content)
    return bool(answer["choices"][0]["text"].strip() == expected.strip())


def made(folder: Path, *command: str) -> Path:
    """A student's folder, after the command that makes it if it is not there."""
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    return folder


def main() -> None:
    """Compare every student with every engine."""
    given = options(__doc__, vllm="build/serve/bin/python", granite="", qwen="", students=1, seed=0, threads=2)
    students = {}
    if given.students:
        demo = ("-c", "from radistill.cli import main; main()", "demo", "--out", "runs/quickstart")
        students["granite-hybrid"] = Path(given.granite or made(ROOT / "runs" / "quickstart" / "student", *demo))
        students["qwen3.5"] = Path(
            given.qwen or made(ROOT / "runs" / "qwen3" / "run" / "student", "benchmarks/qwen3.py")
        )
    os.environ |= VLLM_SETTINGS
    results = []
    for target, folder in students.items():
        model = load(folder)
        prompts = [prompt_tokens(Example.of_user("", text), model.tokenizer) for text in QUESTIONS[target]]
        dtype = "float32" if target == "granite-hybrid" else "bfloat16"
        figures = by_vllm(given.vllm, folder, prompts, dtype)
        first, _, _ = written(load(folder, dtype=dtype), prompts[:1])
        expected = model.tokenizer.decode(first[0], skip_special_tokens=True)
        figures["openai_interface"] = vllm_serve(given.vllm, folder, prompts[0], dtype, expected)
        results += [{"target": target, **figures}, {"target": target, **by_llama_cpp(folder, prompts)}]
        print(json.dumps(results[-2:], indent=1))
    with tempfile.TemporaryDirectory() as place:
        drafted = with_drafter(given.vllm, Path(place))
    print(json.dumps(drafted, indent=1))
    if given.students:
        write_result("serving", results=results, near_tie=NEAR_TIE)
    add_part("serving", "drafted", {each["engine"]: each for each in drafted})
    wrong = [each for each in results if not agrees(each)]
    wrong += [each for each in drafted if each["differs"]]
    for each in wrong:
        print(f"{each['engine']} does not serve {each['target']} as transformers does", file=sys.stderr)
    sys.exit(bool(wrong))


def agrees(figures: dict[str, Any]) -> bool:
    """Whether an engine's tokens, log-probabilities and server are within what is asked of them."""
    least = LEAST if figures["teacher_forced"] else 1.0
    close = figures.get("log_probability_difference", 0.0) <= ROUNDING[figures["dtype"]]
    return bool(figures["tokens_equal"] >= least * figures["tokens_compared"] and close and figures["openai_interface"])


if __name__ == "__main__":
    main()
