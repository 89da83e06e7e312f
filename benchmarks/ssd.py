"""Mamba-2 blocks on a CPU: our convolution, scan and gated norm against transformers' own torch path.

    python benchmarks/ssd.py [--repeats 15] [--threads 2] [--model smollm2-135m] [--prompt 1024]

Blocks of 9 heads of 64 with state 64, as in a converted SmolLM2-135M, batch 1, with one B/C group (the default) and
with nine (the transfer baseline). What is timed is transformers' own block, with its own functions or ours inside;
for `between` its two projections are taken out, so that convolution, scan and gated norm remain. transformers runs
twice: with the chunks of 256 tokens that are its default, and with 64, which are faster on a CPU. The arms take turns
in one process, and every ratio is one of medians. `speedup` is the smallest ratio of `between`, forward and backward,
to transformers as it is, over both lengths and both numbers of groups; `smallest_ratio` has the same for either chunk.
Last, a whole converted model reads a prompt.

The result is written to benchmarks/results/ssd.json.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

# Before torch is imported: threads that wait actively starve each other where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from transformers import GraniteMoeHybridConfig
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer

from common.paths import Paths, compare, shares, summary
from common.result import options, write_result
from radistill import convert, load
from radistill.mixers.mamba2.ssd.install import SWAP as SSD
from radistill.mixers.mamba2.starts import recurrence

HEADS, HEAD_DIM, STATE = 9, 64, 64
WIDTH = HEADS * HEAD_DIM
LENGTHS, GROUPS = (512, 2048), (1, 9)
CHUNKS = {"transformers": 256, "transformers_chunk_64": 64}
REPLACE = [6, 7, 10, 11, 12, 22, 25, 26, 28, 29]

# Where the time of transformers' path goes, by operation.
KINDS = {
    "convolution": ("conv",),
    "matrix products": ("bmm", "addmm", "aten::mm"),
    "decay matrices": ("cumsum", "flip", "exp", "masked_fill", "tril"),
}


class Through(nn.Identity):
    """Stands in for a projection; the block asks for its parameters before it looks for a fused kernel."""

    weight = None
    bias = None


def make_block(groups: int, seed: int) -> GraniteMoeHybridMambaLayer:
    """A block with Mamba-2's published initialisation, in training mode."""
    config = GraniteMoeHybridConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        layer_types=["linear_attention"],
        mamba_n_heads=HEADS,
        mamba_d_head=HEAD_DIM,
        mamba_n_groups=groups,
        mamba_d_state=STATE,
        mamba_expand=1,
    )
    torch.manual_seed(seed)
    block = GraniteMoeHybridMambaLayer(config, 0)
    with torch.no_grad():
        recurrence(block, torch.Generator().manual_seed(seed))
    return block.train()


@contextmanager
def path(name: str, network: nn.Module) -> Iterator[None]:
    """Let `network` run on one of the paths: ours, or transformers' with chunks of some length."""
    if name == "ours":
        yield
        return
    for module in network.modules():
        if hasattr(module, "A_log"):
            module.chunk_size = CHUNKS[name]  # which ours does not read
    with SSD.without(network):
        yield


def paths_of(network: nn.Module) -> Paths:
    """The paths that are compared, ours first."""
    return {name: partial(path, name, network) for name in ("ours", *CHUNKS)}


def train(block: nn.Module, inputs: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Forward and backward of a block: its output, and the gradients of input and parameters."""
    inputs.grad = None
    block.zero_grad()
    output = block(inputs)
    output.backward(weights)
    gradients = {name: weight.grad for name, weight in block.named_parameters()}
    return {"output": output.detach(), "input": inputs.grad, **gradients}


@torch.no_grad()
def forward(block: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Forward of a block."""
    return {"output": block(inputs)}


def measure_block(groups: int, length: int, repeats: int, seed: int) -> dict[str, Any]:
    """A whole block, and what is between its projections."""
    found: dict[str, Any] = {"groups": groups, "tokens": length}
    block = make_block(groups, seed)
    SSD.use(block)
    weights = torch.randn(1, length, WIDTH)
    whole = torch.randn(1, length, WIDTH, requires_grad=True)
    found["whole_block"] = compare(paths_of(block), partial(train, block, whole, weights), repeats)
    projected = block.in_proj(whole).detach().requires_grad_()
    block.in_proj, block.out_proj = Through(), Through()
    found["between"] = compare(paths_of(block), partial(train, block, projected, weights), repeats)
    found["between_forward"] = compare(paths_of(block), partial(forward, block, projected), repeats)
    with path("transformers", block):
        found["transformers_time"] = shares(partial(train, block, projected, weights), KINDS)
    return found


def measure_prefill(name: str, length: int, repeats: int) -> dict[str, Any]:
    """A whole converted model reads a prompt of random tokens into an empty cache."""
    student = convert(load(name), REPLACE, init="random")
    # A fresh `random` block is silent, and a difference inside it would not reach the logits.
    for layer in REPLACE:
        weight = student.anatomy.mixer(student.network, layer).out_proj.weight
        nn.init.normal_(weight, std=0.02)
    ids = torch.randint(student.anatomy.vocab_size, (1, length))

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        return {"logits": student.network(input_ids=ids, use_cache=True, logits_to_keep=1).logits}

    return {"model": name, "replace": REPLACE, "tokens": length, **compare(paths_of(student.network), run, repeats)}


def main() -> None:
    """Measure, print the summary, and write the result."""
    arguments = options(__doc__, repeats=15, threads=2, model="smollm2-135m", prompt=1024, seed=0)
    blocks = [measure_block(g, t, arguments.repeats, arguments.seed) for g in GROUPS for t in LENGTHS]
    ratios = {name: min(block["between"]["ratio"][name] for block in blocks) for name in CHUNKS}
    result = write_result(
        "ssd",
        speedup=ratios["transformers"],
        smallest_ratio=ratios,
        largest_difference=max(max(block["between"]["largest_difference"].values()) for block in blocks),
        blocks=blocks,
        prefill=measure_prefill(arguments.model, arguments.prompt, max(3, arguments.repeats // 3)),
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    for block in blocks:
        for part in ("between", "between_forward", "whole_block"):
            print(f"{block['groups']} groups, {block['tokens']} tokens, {part}: {summary(block[part])}")
    print(f"prefill of {arguments.model}, {arguments.prompt} tokens: {summary(result['prefill'])}")
    print(f"speedup {result['speedup']:.2f}, largest difference {result['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
