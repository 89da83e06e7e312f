"""The chunked loss against the plain one: peak memory, time and gradients, each in a process of its own.

    python benchmarks/losses.py [--batch 4] [--time 1024] [--vocabulary 151936] [--hidden 896]

Both compute the forward KL between a teacher's and a student's predictions from their final hidden states, and the
gradients of the student's hidden states and output embedding, in float32. The plain one makes all logits and leaves
the rest to torch; it holds no tensor longer than autograd needs it, so a careless one would need more. Memory is what
the process holds at its peak beyond what it held before: inputs and weights. The plain one needs about 13 GiB at the
default size. The result is written to benchmarks/results/losses.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from common.result import parser_of, write_result
from radistill.distillation.losses.chunked import chunked_sum
from radistill.distillation.losses.distributions import cross_entropy_mix
from radistill.models.divergence import forward_kl
from radistill.models.logits import OutputEmbedding, ResponseStates
from radistill.provenance import seed_everything

VARIANTS = ("chunked", "plain")


def states(tokens: int, arguments: argparse.Namespace) -> ResponseStates:
    """Random states whose logits have a standard deviation of 3; made in place, so that no peak comes from here."""
    hidden = torch.empty(tokens, arguments.hidden).normal_()
    weight = torch.empty(arguments.vocabulary, arguments.hidden).normal_().mul_(3 * arguments.hidden**-0.5)
    output = OutputEmbedding(weight, None, lambda logits: logits)
    return ResponseStates(hidden, output, torch.zeros(tokens, dtype=torch.long))


def plain(teacher: ResponseStates, student: ResponseStates) -> Tensor:
    """Sum of the forward KL over tokens, from all logits at once."""
    everything = slice(None)
    of_teacher = torch.log_softmax(teacher.logits(everything), dim=-1)
    of_student = torch.log_softmax(student.logits(everything), dim=-1)
    return functional.kl_div(of_student, of_teacher, reduction="sum", log_target=True)


def chunked(teacher: ResponseStates, student: ResponseStates) -> Tensor:
    """The same by radistill, as its trainer calls it."""
    return chunked_sum(cross_entropy_mix(forward_kl, share=0), teacher, student)


def measure(variant: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Loss, seconds and bytes of one variant in this process; its gradients go to a file."""
    loss = {"plain": plain, "chunked": chunked}[variant]
    seed_everything(arguments.seed)
    tokens = arguments.batch * arguments.time
    teacher, student = states(tokens, arguments), states(tokens, arguments)
    student.hidden.requires_grad_()
    student.output.weight.requires_grad_()
    few = slice(0, 8)  # threads and libraries start here
    loss(*(part._replace(hidden=part.hidden[few], targets=part.targets[few]) for part in (teacher, student))).backward()
    student.hidden.grad = student.output.weight.grad = None
    before = psutil.Process().memory_info().rss
    started, processor = time.perf_counter(), time.process_time()
    total = loss(teacher, student)
    total.backward()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert student.hidden.grad is not None
    assert student.output.weight.grad is not None
    save_file({"hidden": student.hidden.grad, "weight": student.output.weight.grad}, folder / f"{variant}.safetensors")
    return {
        "loss": total.item() / tokens,
        "seconds": seconds,
        "processor_seconds": processor,  # of all threads; does not count waiting for other processes
        "peak_bytes": peak - before,
        "resident_bytes": before,
    }


def gradient_differences(folder: Path) -> dict[str, float]:
    """Norm of the difference of both variants' gradients, relative to the norm of the plain one's."""
    found, expected = (load_file(folder / f"{variant}.safetensors") for variant in VARIANTS)
    return {
        name: float((found[name] - reference).norm(dtype=torch.float64) / reference.norm(dtype=torch.float64))
        for name, reference in expected.items()
    }


def main() -> None:
    """Measure both variants, one after the other, and write the result."""
    parser = parser_of(__doc__, batch=4, time=1024, vocabulary=151_936, hidden=896, seed=0)
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help="for the processes that it starts")
    arguments = parser.parse_args()
    given = vars(arguments)
    if part := given.pop("measure"):
        print(json.dumps(measure(part[0], arguments, Path(part[1]))))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            command = [sys.executable, *sys.argv, "--measure", variant, folder]
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[variant] = json.loads(process.stdout)
        differences = gradient_differences(Path(folder))
    measured = {"memory": "peak_bytes", "time": "seconds", "processor_time": "processor_seconds"}
    ratios = {f"{name}_ratio": figures["chunked"][of] / figures["plain"][of] for name, of in measured.items()}
    result = write_result("losses", **ratios, gradient_differences=differences, **figures, dtype="float32", **given)
    print(
        f"memory {result['memory_ratio']:.3f} and time {result['time_ratio']:.2f} of the plain loss; "
        f"gradients differ by {max(differences.values()):.1e}"
    )


if __name__ == "__main__":
    main()
