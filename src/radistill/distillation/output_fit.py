"""The output projection of a block in closed form: what it should be, given everything before it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RIDGE = 1e-3
"""Relative to the mean square of a feature: enough for features that repeat one another."""


@torch.no_grad()
def solve_output(block: nn.Module, output: nn.Linear, samples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> bool:
    """Set a block's output projection to the ridge regression of the wanted outputs on what the projection reads.

    A block is linear in its output projection, so this part of the fit has a closed form: the normal equations of
    W = argmin sum_tokens |f W - y|^2 + ridge |W|^2, in float64, with the features f that reach the projection.

    Args:
        block: from hidden states [batch, time, hidden] and an `attention_mask` [batch, time] to outputs.
        output: its last linear layer, weight [hidden, inner]; a bias is left as it is.
        samples: inputs and wanted outputs, [batch, time, hidden], and masks, [batch, time].

    Returns:
        False if nothing reaches the projection, which then stays as it is: a block whose `in_proj` is zero.
    """
    features: list[Tensor] = []

    def listen(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        features.append(args[0])

    size = output.in_features
    gram = torch.zeros(size, size, dtype=torch.float64)
    cross = torch.zeros(size, output.out_features, dtype=torch.float64)
    with output.register_forward_pre_hook(listen):
        for inputs, wanted, mask in samples:
            block(inputs.to(output.weight.dtype), attention_mask=mask)
            rows = features.pop()[mask.bool()].double().cpu()
            target = wanted[mask.bool()].double().cpu()
            if output.bias is not None:
                target = target - output.bias.double().cpu()
            gram += rows.T @ rows
            cross += rows.T @ target
    scale = gram.diagonal().mean()
    if not torch.isfinite(scale) or scale == 0:
        return False
    gram.diagonal().add_(RIDGE * scale)
    output.weight.copy_(torch.linalg.solve(gram, cross).T)
    return True
