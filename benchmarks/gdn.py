"""Gated DeltaNet blocks on a CPU: our convolution, delta rule and gated norm against transformers' own torch path.

    python benchmarks/gdn.py [--repeats 11] [--threads 2]

Blocks of transformers, with its own functions or ours inside, batch 1, float32, of two shapes: 8 key heads and 16 value
heads of 128 at width 1,024, as in a converted Qwen3-0.6B, and 3 and 9 of 64 at width 576, as in a converted
SmolLM2-135M. For `between` the projections are replaced by what they once returned, so that convolution, gates, delta
rule and gated norm remain. The arms take turns in one process, and every ratio is one of medians. `speedup` is, for
each number of tokens, the smaller ratio of the two shapes for `between`, forward and backward. `decoding` reads one
token at a time from a cache, where both arms run transformers' own recurrence and only the norm is ours.

Both arms are also compared with the same block in float64, because transformers' path loses digits of the gradients of
the log-decays: `largest_difference` is that of the two arms, of everything but these; `decay_gradients` has each arm's
difference from float64 for them.

The result is written to benchmarks/results/gdn.json.
"""

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

# Before torch is imported: threads that wait actively starve each other where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from common.paths import Paths, compare, shares, summary
from common.result import options, write_result
from radistill.mixers.gdn.delta.install import SWAP as DELTA

LENGTHS = (512, 2048)
SHAPES = {
    "qwen3-0.6b": {"hidden": 1024, "key_heads": 8, "heads": 16, "head_dim": 128},
    "smollm2-135m": {"hidden": 576, "key_heads": 3, "heads": 9, "head_dim": 64},
}
PROJECTIONS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

# Where the time of transformers' path goes, by operation.
KINDS = {
    "convolution": ("conv",),
    "triangular systems": ("triangular",),
    "matrix products": ("bmm", "addmm", "aten::mm"),
    "gradients of slices": ("fill_", "zero", "slice_backward", "select_backward"),
}


class Given(nn.Module):
    """Stands in for a projection: returns what it is told to."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


def make_block(shape: dict[str, int], seed: int) -> Qwen3_5GatedDeltaNet:
    """A block in training mode, with steps from 0.001 to 0.1 and decays as Mamba-2 and Gated DeltaNet start them."""
    config = Qwen3_5TextConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=shape["key_heads"],
        linear_num_value_heads=shape["heads"],
        linear_key_head_dim=shape["head_dim"],
        linear_value_head_dim=shape["head_dim"],
    )
    torch.manual_seed(seed)
    block = Qwen3_5GatedDeltaNet(config, 0)
    with torch.no_grad():
        steps = torch.empty(shape["heads"]).uniform_(-6.9, -2.3).exp()
        block.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        block.A_log.copy_(torch.empty(shape["heads"]).uniform_(1, 16).log())
    return block.train()


def paths_of(block: nn.Module) -> Paths:
    """Ours, and transformers' own."""
    return {"ours": nullcontext, "transformers": partial(DELTA.without, block)}


def train(block: nn.Module, hidden: Tensor, leaves: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Forward and backward of a block: its output, and the gradients of `leaves` and parameters."""
    block.zero_grad()
    for leaf in leaves.values():
        leaf.grad = None
    output = block(hidden)
    output.backward(weights)
    named = {**leaves, **dict(block.named_parameters())}
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in named.items() if leaf.grad is not None}}


@torch.no_grad()
def forward(block: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    """Forward of a block."""
    return {"output": block(hidden)}


def measure_block(name: str, length: int, repeats: int, seed: int) -> dict[str, Any]:
    """A whole block, what is between its projections, and these results beside those in float64."""
    shape = SHAPES[name]
    block = make_block(shape, seed)
    DELTA.use(block)
    hidden = torch.randn(1, length, shape["hidden"], requires_grad=True)
    weights = torch.randn(1, length, shape["hidden"])
    found: dict[str, Any] = {"shape": {"name": name, **shape}, "tokens": length}
    found["whole_block"] = _compare(block, partial(train, block, hidden, {"input": hidden}, weights), repeats)

    leaves = {part: getattr(block, part)(hidden).detach().requires_grad_() for part in PROJECTIONS}
    for part, leaf in leaves.items():
        setattr(block, part, Given(leaf))
    block.out_proj = nn.Identity()
    weights = torch.randn(1, length, shape["heads"] * shape["head_dim"])
    run = partial(train, block, hidden.detach(), leaves, weights)
    found["between"] = _compare(block, run, repeats)
    found["between_forward"] = compare(paths_of(block), partial(forward, block, hidden.detach()), repeats)
    found["decay_gradients"] = _decay_gradients(block, run, leaves, weights)
    with DELTA.without(block):
        found["transformers_time"] = shares(run, KINDS)
    return found


def _compare(block: nn.Module, run: Callable[[], dict[str, Tensor]], repeats: int) -> dict[str, Any]:
    return compare(paths_of(block), lambda: {n: t for n, t in run().items() if not _through_decays(n)}, repeats)


def _through_decays(name: str) -> bool:
    return name.startswith(("A_log", "dt_bias", "in_proj_a"))


def _decay_gradients(
    block: nn.Module, run: Callable[[], dict[str, Tensor]], leaves: dict[str, Tensor], weights: Tensor
) -> dict[str, float]:
    """Largest difference, relative to the root mean square, of the gradients of log-decays from those in float64."""
    wide = copy.deepcopy(block).double()
    wide_leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    for name, leaf in wide_leaves.items():
        setattr(wide, name, Given(leaf))
    exact = train(wide, torch.zeros(1, weights.shape[1], block.hidden_size), wide_leaves, weights.double())
    found = {}
    for name, path in paths_of(block).items():
        with path():
            results = {part: tensor.double() for part, tensor in run().items() if _through_decays(part)}
        found[name] = max(float((each - exact[part]).norm() / exact[part].norm()) for part, each in results.items())
    return found


def measure_decoding(name: str, repeats: int, seed: int, tokens: int = 64) -> dict[str, Any]:
    """A block reads tokens one by one after a prompt of as many; seconds are of one token."""
    block = make_block(SHAPES[name], seed).eval()
    DELTA.use(block)
    config = Qwen3_5TextConfig(num_hidden_layers=1, layer_types=["linear_attention"])
    hidden = torch.randn(1, 2 * tokens, SHAPES[name]["hidden"])

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        cache = DynamicCache(config=config)
        block(hidden[:, :tokens], cache=cache)
        outputs = [block(hidden[:, token : token + 1], cache=cache) for token in range(tokens, 2 * tokens)]
        return {"output": torch.cat(outputs, dim=1)}

    found = compare(paths_of(block), run, repeats)
    found["seconds"] = {path: seconds / tokens for path, seconds in found["seconds"].items()}
    return {"shape": name, **found}


def main() -> None:
    """Measure, print the summary, and write the result."""
    arguments = options(__doc__, repeats=11, threads=2, seed=0)
    blocks = [measure_block(name, t, arguments.repeats, arguments.seed) for name in SHAPES for t in LENGTHS]
    result = write_result(
        "gdn",
        speedup={
            str(t): min(block["between"]["ratio"]["transformers"] for block in blocks if block["tokens"] == t)
            for t in LENGTHS
        },
        largest_difference=max(max(block["between"]["largest_difference"].values()) for block in blocks),
        blocks=blocks,
        decoding=[measure_decoding(name, arguments.repeats, arguments.seed) for name in SHAPES],
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    for block in blocks:
        for part in ("between", "between_forward", "whole_block"):
            print(f"{block['shape']['name']}, {block['tokens']} tokens, {part}: {summary(block[part])}")
    for one in result["decoding"]:
        print(f"{one['shape']}, one token: {summary(one)}")
    print(f"speedup {result['speedup']}, largest difference {result['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
