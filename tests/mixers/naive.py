"""Mamba-2 and Gated DeltaNet token by token: the slow and obvious definitions that faster paths are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def naive_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """The recurrence `state = exp(step A) state + step x B`, `y = C state + D x`, with `step = softplus(dt + dt_bias)`.

    Args:
        x: [batch, time, heads, head_dim].
        dt: [batch, time, heads].
        A, D, dt_bias: [heads]; A is negative.
        B, C: [batch, time, groups, state]; a group serves `heads / groups` consecutive heads.
        initial_state: [batch, heads, head_dim, state]; zero if None.
        dt_limit: the step is clamped to this range.

    Returns:
        y, [batch, time, heads, head_dim], and the last state, [batch, heads, head_dim, state].
    """
    batch, time, heads, head_dim = x.shape
    each = heads // B.shape[2]
    state = x.new_zeros(batch, heads, head_dim, B.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        step = F.softplus(dt[:, t] + dt_bias).clamp(*dt_limit)
        b, c = B[:, t].repeat_interleave(each, dim=1), C[:, t].repeat_interleave(each, dim=1)
        state = torch.exp(step * A)[..., None, None] * state + (step[..., None] * x[:, t])[..., None] * b[..., None, :]
        outputs.append((state * c[..., None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state


def naive_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of a causal convolution, each channel by itself.

    Args:
        x: [batch, channels, time].
        weight: [channels, taps]; the last tap reads the present.
        bias: [channels].

    Returns:
        [batch, channels, time].
    """
    taps = weight.shape[1]
    outputs = []
    for t in range(x.shape[2]):
        read = range(max(0, taps - 1 - t), taps)
        y = sum((weight[:, tap] * x[:, :, t - taps + 1 + tap] for tap in read), start=torch.zeros_like(x[:, :, t]))
        y = y if bias is None else y + bias
        outputs.append(y * torch.sigmoid(y))
    return torch.stack(outputs, dim=2)


def naive_gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, group_size: int) -> Tensor:
    """`x silu(gate)`, divided by its root mean square over each group of channels, times the weight.

    Args:
        x, gate: [..., channels].
        weight: [channels].
        eps: added to the mean square.
        group_size: channels of a group, which divides `channels`.

    Returns:
        [..., channels].
    """
    gated = (x * gate * torch.sigmoid(gate)).split(group_size, dim=-1)
    return weight * torch.cat([part / (part.square().mean(-1, keepdim=True) + eps).sqrt() for part in gated], dim=-1)


def naive_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence `state = exp(g) state; state = state + beta k (v - k state); o = q state / sqrt(key_dim)`.

    Args:
        q, k: [batch, time, key_heads, key_dim].
        v: [batch, time, heads, value_dim]; a key head serves `heads / key_heads` consecutive heads.
        g, beta: [batch, time, heads].
        initial_state: [batch, heads, key_dim, value_dim]; zero if None.
        normalise: divide each query and key by `sqrt(its square + 1e-6)` first.

    Returns:
        o, [batch, time, heads, value_dim], and the last state, [batch, heads, key_dim, value_dim].
    """
    batch, time, heads, value_dim = v.shape
    key_dim, each = k.shape[3], heads // k.shape[2]
    if normalise:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    state = v.new_zeros(batch, heads, key_dim, value_dim) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        query, key = (x[:, t].repeat_interleave(each, dim=1)[..., None] for x in (q, k))
        state = torch.exp(g[:, t])[..., None, None] * state
        error = v[:, t] - (key * state).sum(-2)
        state = state + key * (beta[:, t][..., None] * error)[..., None, :]
        outputs.append((query * state).sum(-2) / key_dim**0.5)
    return torch.stack(outputs, dim=1), state


def naive_norm_then_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x`, divided by its root mean square, times the weight and `silu(gate)`.

    Args:
        x, gate: [..., channels].
        weight: [channels].
        eps: added to the mean square.

    Returns:
        [..., channels].
    """
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gate * torch.sigmoid(gate)
