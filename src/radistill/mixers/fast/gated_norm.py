"""The gated RMSNorms of Mamba-2, which gates first, and of Gated DeltaNet, which norms first, with their gradients.

Written out, a gradient needs three kept tensors instead of ten.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, group_size: int) -> Tensor:
    """`x silu(gate)`, divided by its root mean square over each group of channels, times the weight.

    Args:
        x, gate: [..., channels].
        weight: [channels].
        eps: added to the mean square.
        group_size: channels of a group, which divides `channels`.

    Returns:
        [..., channels].
    """
    if not torch.is_grad_enabled():  # as few calls as can be: they are what the norm of one token costs
        gated = F.silu(gate).mul_(x)
        if group_size == x.shape[-1]:
            return F.rms_norm(gated, (group_size,), weight, eps)
        return F.rms_norm(gated.unflatten(-1, (-1, group_size)), (group_size,), None, eps).flatten(-2).mul_(weight)
    result: Tensor = _GatedNorm.apply(x, gate, weight, eps, group_size)
    return result


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float, group_size: int) -> Tensor:
        y = F.silu(gate).mul_(x)
        groups = y.unflatten(-1, (-1, group_size))
        scale = torch.linalg.vecdot(groups, groups).div_(group_size).add_(eps).rsqrt_().unsqueeze_(-1)
        groups.mul_(scale)
        ctx.save_for_backward(x, gate, weight, scale)
        return y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gate, weight, scale = ctx.saved_tensors
        group_shape = (-1, x.shape[-1] // scale.shape[-2])
        opened = F.silu(gate)
        normed = opened * x
        normed.unflatten(-1, group_shape).mul_(scale)
        product = grad * normed
        dweight = product.flatten(0, -2).sum(0)
        # d(loss) / d(x silu(gate)) = scale (weight grad - normed mean(weight grad normed))
        mean = product.mul_(weight).unflatten(-1, group_shape).mean(-1, keepdim=True)
        dgated = torch.mul(grad, weight, out=product)
        groups = dgated.unflatten(-1, group_shape)
        groups.addcmul_(normed.unflatten(-1, group_shape), mean, value=-1).mul_(scale)
        dopened = torch.mul(dgated, x, out=normed)
        dgate = torch.ops.aten.silu_backward.grad_input(dopened, gate, grad_input=dopened)
        return dgated.mul_(opened), dgate, dweight, None, None


def norm_then_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x`, divided by its root mean square, times the weight and `silu(gate)`; the shapes are those of `gated_norm`."""
    if not torch.is_grad_enabled():  # as few calls as can be: they are what the norm of one token costs
        return F.rms_norm(x, (x.shape[-1],), weight, eps).mul_(F.silu(gate))
    result: Tensor = _NormThenGate.apply(x, gate, weight, eps)
    return result


class _NormThenGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gate, weight, scale)
        return F.silu(gate).mul_(x).mul_(scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, weight, scale = ctx.saved_tensors
        normed = x * scale
        opened = F.silu(gate).mul_(grad)
        dnormed = opened * weight
        dweight = opened.mul_(normed).flatten(0, -2).sum(0)
        # d(loss) / d x = scale (dnormed - normed mean(dnormed normed))
        mean = torch.mul(dnormed, normed, out=opened).mean(-1, keepdim=True)
        dopened = torch.mul(normed, weight, out=opened).mul_(grad)
        dgate = torch.ops.aten.silu_backward.grad_input(dopened, gate, grad_input=dopened)
        return dnormed.addcmul_(normed, mean, value=-1).mul_(scale), dgate, dweight, None
