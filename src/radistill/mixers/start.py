"""How the parts that several mixers have start: published initialisations, drawn alike on every device."""

import math

import torch
from torch import Tensor, nn

A_RANGE = (1.0, 16.0)
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


def uniform(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """Fill `tensor` uniformly from [low, high), drawn on the CPU in float32, so that every device gets the same."""
    drawn = torch.empty(tensor.shape, dtype=torch.float32).uniform_(low, high, generator=generator)
    tensor.copy_(drawn)


def linear_weight(weight: Tensor, generator: torch.Generator) -> None:
    """PyTorch's default for a linear layer, weight [out, in]: uniform within 1 / sqrt(in)."""
    bound = 1 / math.sqrt(weight.shape[1])
    uniform(weight, -bound, bound, generator)


def convolution(conv: nn.Conv1d, generator: torch.Generator) -> None:
    """PyTorch's default for a depthwise convolution, weight [channels, 1, taps]: all uniform within 1 / sqrt(taps)."""
    bound = 1 / math.sqrt(conv.weight.shape[-1])
    uniform(conv.weight, -bound, bound, generator)
    if conv.bias is not None:
        uniform(conv.bias, -bound, bound, generator)


def pass_through(conv: nn.Conv1d) -> None:
    """A depthwise convolution that hands on its input: the last tap 1, the others and the bias 0."""
    conv.weight.zero_()
    conv.weight[..., -1] = 1.0
    if conv.bias is not None:
        conv.bias.zero_()


def decays(a_log: Tensor, dt_bias: Tensor, generator: torch.Generator) -> None:
    """Decay rates and step sizes, both [heads], by Mamba-2's published rule (arXiv 2405.21060 and its reference code).

    -A is uniform in [1, 16]. The step size softplus(dt_bias) is log-uniform in [1e-3, 1e-1]; its bias is the inverse
    softplus, dt + log(-expm1(-dt)).
    """
    decay = torch.empty(a_log.shape, dtype=torch.float32).uniform_(*A_RANGE, generator=generator)
    a_log.copy_(decay.log())
    low, high = (math.log(bound) for bound in DT_RANGE)
    step = torch.empty(dt_bias.shape, dtype=torch.float32).uniform_(low, high, generator=generator).exp()
    step = step.clamp(min=DT_FLOOR)
    dt_bias.copy_(step + torch.log(-torch.expm1(-step)))


def per_query_head(tensor: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Repeat KV heads, first dimension [kv_heads * head_dim], for the query heads that share them."""
    return tensor.unflatten(0, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=0).flatten(0, 1)
