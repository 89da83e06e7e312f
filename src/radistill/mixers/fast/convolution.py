"""The causal convolution of Mamba-2 and Gated DeltaNet with its SiLU, as a few shifted multiply-adds.

A convolution with one filter per channel does so little per number that what counts is how memory is walked through.
Libraries spend most of a training step in the gradient of the filters, and copy the activations from rows of channels,
in which the projections write and read them, to rows of time and back. Here channels stay innermost throughout, and all
steps are done to a block of tokens while it is in the cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of a block of tokens that is finished before the next one is read.
_BLOCK = 1 << 17


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


def convolution_step(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`causal_convolution` of one token, without gradients. The memory is changed in place.

    Args:
        x: [batch, channels].
        memory: the last inputs, [batch, channels, taps].
        weight: [channels, taps]; the last tap reads the present.
        bias: [channels].

    Returns:
        [batch, channels].
    """
    window = torch.cat([memory[..., 1:], x[..., None]], dim=-1)
    memory.copy_(window)
    y = (window.to(torch.promote_types(x.dtype, torch.float32)) * weight).sum(-1)
    return F.silu(y if bias is None else y.add_(bias), inplace=True).to(x.dtype)


class _CausalConvolution(torch.autograd.Function):
    """On [batch, time, channels]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        # One row of channels for each tap, the present first, so that the innermost loop reads consecutive numbers.
        filters = weight.t().flip(0).contiguous()
        y = x.new_empty(x.shape)
        for row, start, end in _blocks(x):
            F.silu(_convolve(x[row], filters, bias, start, end, out=y[row, start:end]), inplace=True)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight, bias = ctx.saved_tensors
        filters = weight.t().flip(0).contiguous()
        taps, (_, time, channels) = weight.shape[1], x.shape
        dx = x.new_empty(x.shape)
        block = min(time, _tokens(channels))
        dfilters, dbias = (x.new_zeros(size, block, channels) for size in (taps, 1))
        # The gradient before the SiLU, of a block and of the tokens after it that read from it.
        buffer = x.new_empty(block + taps - 1, channels)
        for row, start, end in reversed(_blocks(x)):
            length = end - start
            after = min(taps - 1, time - end)
            if after:
                buffer[length : length + after] = buffer[:after].clone()
            # Cheaper computed again than kept: the input is in memory anyway, as a part of the projection's output.
            inner = _convolve(x[row], filters, bias, start, end, out=buffer[:length])
            torch.ops.aten.silu_backward.grad_input(grad[row, start:end], inner, grad_input=inner)
            target = torch.mul(inner, filters[0], out=dx[row, start:end])
            for shift in range(taps):
                early = max(0, shift - start)
                if early < length:
                    dfilters[shift, early:length].addcmul_(inner[early:], x[row, start + early - shift : end - shift])
                read = min(length, length + after - shift)
                if shift and read > 0:
                    target[:read].addcmul_(buffer[shift : shift + read], filters[shift])
            if bias is not None:
                dbias[0, :length] += inner
        return dx, dfilters.sum(1).flip(0).t(), None if bias is None else dbias.sum((0, 1))


def _tokens(channels: int) -> int:
    """Tokens of a block: few enough that what is done to it finds it in the cache, enough to be worth a call."""
    return max(16, _BLOCK // channels)


def _blocks(x: Tensor) -> list[tuple[int, int, int]]:
    """Row, first token and end of each block of [batch, time, channels]."""
    batch, time, channels = x.shape
    step = _tokens(channels)
    return [(row, start, min(start + step, time)) for row in range(batch) for start in range(0, time, step)]


def _convolve(x: Tensor, filters: Tensor, bias: Tensor | None, start: int, end: int, out: Tensor) -> Tensor:
    """Tokens from `start` to `end` of a row [time, channels], before the SiLU."""
    present = x[start:end]
    if bias is None:
        torch.mul(present, filters[0], out=out)
    else:
        torch.addcmul(bias, present, filters[0], out=out)
    for shift in range(1, min(len(filters), end)):
        early = max(0, shift - start)
        out[early:].addcmul_(x[start + early - shift : end - shift], filters[shift])
    return out
