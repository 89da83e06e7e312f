"""llama.cpp against transformers on an exported student: agreement, file sizes and speed, by type of the weights.

    python benchmarks/export.py [MODEL] [--tokens 64]

MODEL is the folder of a student, such as runs/quickstart/student. Without one, SmolLM2-135M with ten attention layers
replaced by random blocks that contribute, which shows everything but quality. Both engines get the same token ids, one
prompt at a time, and never choose a special token, so that every answer has its full length. transformers computes in
float32; llama.cpp in the type of the file, with a float32 cache. Result: benchmarks/results/export.json.
"""

import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.result import parser_of, write_result
from radistill import convert, load
from radistill.export import write_gguf
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.models.loading import Model
from radistill.provenance import seed_everything

REPLACED = [3, 6, 7, 11, 14, 18, 22, 25, 28, 29]
TYPES = ("float32", "bfloat16", "q8_0")
NEAR_TIE = 1e-3
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in 1984,",
    "Water boils at 100 degrees because",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
)


def speaking_student() -> Model:
    """SmolLM2 with ten blocks whose output is not zero, as it is where `convert` starts."""
    student = convert(load("smollm2-135m"), REPLACED, init="random")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in REPLACED:
            weight = student.anatomy.mixer(student.network, layer).out_proj.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 * weight.shape[1] ** -0.5)
    return student


def by_transformers(model: Model, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], list[Any], float]:
    """Greedy tokens, the margin of each over the next, and tokens a second."""
    answers, margins, seconds = [], [], 0.0
    never = model.tokenizer.all_special_ids
    for prompt in prompts:
        started = time.perf_counter()
        found = model.network.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, suppress_tokens=never
        )
        seconds += time.perf_counter() - started
        with torch.no_grad():
            logits = model.network(found).logits[0, len(prompt) - 1 : -1]
        logits[:, never] = -torch.inf
        answers.append(found[0, len(prompt) :].tolist())
        margins.append((-logits.topk(2).values.diff().squeeze(1)).tolist())
    return answers, margins, len(prompts) * tokens / seconds


def by_llama_cpp(path: Path, prompts: list[list[int]], tokens: int, never: list[int]) -> tuple[list[list[int]], float]:
    """Greedy tokens and tokens a second, the reading of the prompts included."""
    engine = LlamaCpp(path, threads=torch.get_num_threads())
    settings: dict[str, Any] = {"ignore_eos": True, "logit_bias": [[token, False] for token in never]}
    started = time.perf_counter()
    answers = [engine.greedy(prompt, tokens, **settings)["tokens"] for prompt in prompts]
    return answers, len(prompts) * tokens / (time.perf_counter() - started)


def compare(expected: list[int], found: list[int], margins: list[float]) -> dict[str, Any]:
    """How far two answers go together, and how near a tie the first difference was."""
    first = next((at for at, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]), None)
    equal = {"tokens": len(expected), "equal_until": len(expected) if first is None else first}
    return equal if first is None else equal | {"margin": margins[first], "near_tie": margins[first] < NEAR_TIE}


def main() -> None:
    """Export in each type, answer the prompts with both engines, write the result."""
    parser = parser_of(__doc__, tokens=64, threads=2)
    parser.add_argument("model", nargs="?", type=Path)
    arguments = parser.parse_args()
    seed_everything(0, arguments.threads)
    student = speaking_student() if arguments.model is None else load(arguments.model)
    prompts = [student.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected, margins, speed = by_transformers(student, prompts, arguments.tokens)
    result: dict[str, Any] = {
        "model": "SmolLM2-135M, ten layers random" if arguments.model is None else arguments.model.name,
        "ssm_layers": list(student.anatomy.ssm_layers),
        "transformers": {"dtype": "float32", "tokens_per_second": speed},
        "llama_cpp": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "student"
        student.save(folder)
        result["transformers"]["bytes"] = (folder / "model.safetensors").stat().st_size
        for dtype in TYPES:
            path = Path(scratch) / f"{dtype}.gguf"
            write_gguf(folder, path, dtype)
            answers, speed = by_llama_cpp(path, prompts, arguments.tokens, student.tokenizer.all_special_ids)
            compared = list(map(compare, expected, answers, margins))
            found = {"bytes": path.stat().st_size, "tokens_per_second": speed, "prompts": compared}
            result["llama_cpp"][dtype] = found
    result["llama_cpp_package"] = f"xllamacpp {version('xllamacpp')}"
    print(json.dumps(write_result("export", **result), indent=2))


if __name__ == "__main__":
    main()
