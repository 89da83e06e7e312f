"""The causal convolution of Mamba-2 and Gated DeltaNet with its SiLU, as a few shifted multiply-adds.

A convolution with one filter per channel does so little per number that what counts is how memory is walked through.
Libraries spend most of a training step in the gradient of the filters, and copy the activations from rows of channels,
in which the projections write and read them, to rows of time and back. Here channels stay innermost throughout.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of a causal convolution, each channel by itself.

    Args:
        x: [batch, channels, time]; fastest as a transposed [batch, time, channels].
        weight: [channels, taps]; the last tap reads the present.
        bias: [channels].

    Returns:
        [batch, channels, time], as a transposed [batch, time, channels].
    """
    result: Tensor = _CausalConvolution.apply(x.transpose(1, 2), weight, bias)
    return result.transpose(1, 2)


class _CausalConvolution(torch.autograd.Function):
    """On [batch, time, channels]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return F.silu(_convolve(x, weight, bias), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight, bias = ctx.saved_tensors
        time, taps = x.shape[1], weight.shape[1]
        filters = weight.t().contiguous()
        # Cheaper computed again than kept: the input is in memory anyway, as a part of the projection's output.
        inner = _convolve(x, weight, bias)
        torch.ops.aten.silu_backward.grad_input(grad, inner, grad_input=inner)
        dx = torch.empty_like(inner)
        dweight = torch.zeros_like(filters)
        for shift in range(min(taps, time)):
            # The buffer of dx serves for the products first: writing to fresh memory can cost more than a pass.
            product = torch.mul(inner[:, shift:], x[:, : time - shift], out=dx[:, : time - shift])
            dweight[taps - 1 - shift] = product.sum((0, 1))
        torch.mul(inner, filters[-1], out=dx)
        for shift in range(1, min(taps, time)):
            dx[:, : time - shift].addcmul_(inner[:, shift:], filters[taps - 1 - shift])
        return dx, dweight.t(), None if bias is None else inner.sum((0, 1))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[batch, time, channels], before the SiLU."""
    time, taps = x.shape[1], weight.shape[1]
    # One row of channels for each tap, so that the innermost loop reads consecutive numbers.
    filters = weight.t().contiguous()
    y = x * filters[-1] if bias is None else torch.addcmul(bias, x, filters[-1])
    for shift in range(1, min(taps, time)):
        y[:, shift:].addcmul_(x[:, : time - shift], filters[taps - 1 - shift])
    return y
