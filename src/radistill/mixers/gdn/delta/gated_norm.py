"""The gated RMSNorm of Gated DeltaNet, with its gradient written out. Unlike Mamba-2's, it norms before it gates."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def norm_then_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x`, divided by its root mean square, times the weight and `silu(gate)`.

    Args:
        x, gate: [..., channels].
        weight: [channels].
        eps: added to the mean square.

    Returns:
        [..., channels].
    """
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
