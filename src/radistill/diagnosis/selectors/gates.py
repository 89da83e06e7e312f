"""Gates on all attention layers at once, trained under a budget: FlashMorph's idea (arXiv 2606.30562)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from radistill.console import progress
from radistill.diagnosis.full_model import FullModel
from radistill.diagnosis.selectors.base import Problem, Selection, Selector, most_redundant
from radistill.diagnosis.trials import Trials
from radistill.models.anatomy import Component
from radistill.models.loading import Model
from radistill.speculation.substitutes import Substitutes

_LARGEST_CHANGE = 1.5
"""Of a layer's log share in one step, so that a layer that is vital at one mixture is not ruled out for ever."""


class Gates(Selector):
    """A share of every attention gives way, more of it step by step; the layers that least resist go."""

    kind: Literal["gates"] = "gates"
    steps: int = Field(default=24, ge=1, description="gradient steps, each over all calibration documents")
    learning_rate: float = Field(default=0.5, gt=0, allow_inf_nan=False, description="of the multiplicative updates")
    ramp: float = Field(
        default=0.8, gt=0, le=1, description="share of the steps in which the shares grow to the budget"
    )
    judge_every: int = Field(default=2, ge=1, description="steps after which the set of the largest shares is judged")

    def most_passes(self, candidates: int, sizes: range) -> int:
        """Forward and backward of each step, and the judged sets."""
        return 2 * self.steps + self.steps // self.judge_every + 1

    def select(self, problem: Problem) -> Selection:
        """Train the shares, and choose the best of the sets that they passed through.

        What is off always adds up to the number of layers that go, and this number grows from nothing: near the whole
        model its gradient tells which layers matter, far from it nothing does. A step multiplies each share by the
        exponential of minus its relative cost (Kivinen and Warmuth, 1997), because costs differ by orders of magnitude
        between layers, and rescales them to the budget, none above 1. Weights get no gradient and do not change, so a
        step costs about two forward passes.
        """
        trials, count = problem.trials, len(problem.candidates)
        shares = torch.full((count,), 1 / count, dtype=torch.float64)
        with progress("train gates", self.steps, "steps") as advance:
            for step in range(1, self.steps + 1):
                trials.spend(2 * trials.calibration_tokens)
                total = problem.budget * min(1.0, step / (self.ramp * self.steps))
                shares = scaled_to(shares, total)
                kl, gradient = differentiate(trials, problem.candidates, 1 - shares)
                shares = updated(shares, -gradient, self.learning_rate)
                status = f"KL {kl:.4f}"
                if step % self.judge_every == 0 or step == self.steps:
                    scores = dict(zip(problem.candidates, shares.tolist(), strict=True))
                    size = min(max(round(total), problem.sizes[0]), problem.budget)
                    status += f", set {trials.value(most_redundant(scores, size)):.4f}"
                advance(1, status)
        best = trials.best(problem.sizes)
        assert best is not None  # the last step is judged
        lost = "is off" if trials.substitutes is None else "its fitted block has"
        part = "this layer's attention" if trials.components == (Component.ATTENTION,) else "this layer"
        return Selection(best, scores, f"trained share of {part} that {lost}, not capped at 1")


def differentiate(trials: Trials, layers: Sequence[int], gates: Tensor) -> tuple[float, Tensor]:
    """KL(target || model with gates) in nats, mean over response tokens, and its gradient [layers]."""
    parts = trials.each(partial(_gradient, layers=layers, gates=gates, components=trials.components))
    losses, gradients = zip(*parts, strict=True)
    return sum(losses) / trials.response_tokens, torch.stack(gradients).sum(dim=0) / trials.response_tokens


def _gradient(
    full: FullModel, layers: Sequence[int], gates: Tensor, components: Sequence[Component]
) -> tuple[float, Tensor]:
    """The KL of one batch, summed over its response tokens, and its gradient by the gates."""
    gates = gates.detach().clone().requires_grad_()
    with gated(full.model, layers, gates, full.substitutes, components):
        loss = full.divergence()
        loss.backward()
    assert gates.grad is not None
    return loss.item(), gates.grad


def updated(shares: Tensor, costs: Tensor, rate: float) -> Tensor:
    """Shares after one multiplicative step, not yet rescaled.

    Args:
        shares: [layers], positive.
        costs: [layers], derivative of the loss by each share.
        rate: a layer of average cost loses this much of the logarithm of its share.
    """
    free = shares < 1
    weights = shares * free if free.any() else shares
    average = (weights * costs.abs()).sum() / weights.sum()
    if not torch.isfinite(average) or average <= 0:
        return shares
    change = (rate * costs / average).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE)
    return shares * torch.exp(-change)


def scaled_to(shares: Tensor, total: float) -> Tensor:
    """min(1, c x shares) for the one c with which they add up to `total`.

    Args:
        shares: [layers], positive.
        total: above 0, at most the number of layers.
    """
    largest_first = shares.sort(descending=True).values
    for full in range(len(shares)):
        rest = largest_first[full:]
        scale = (total - full) / rest.sum()
        if scale * rest[0] <= 1:
            break
    return (shares * scale).clamp(max=1)


@contextmanager
def gated(
    model: Model,
    layers: Sequence[int],
    gates: Tensor,
    substitutes: Substitutes | None = None,
    components: Sequence[Component] = (Component.ATTENTION,),
) -> Iterator[None]:
    """Multiply what these components of `layers` add by `gates` [layers]; afterwards the model is as it was.

    Inside, gradients flow to the gates only: the weights are frozen. With substitutes, what a gate takes from an
    attention it gives to its layer's block.
    """

    def gate(index: int, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            added = output[0] if isinstance(output, tuple) else output
            share = gates[index].to(added)
            scaled = added * share
            if substitutes is not None:
                instead, _ = substitutes.forward_of(layer)(args[0] if args else kwargs["hidden_states"])
                scaled = scaled + instead * (1 - share)
            return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

        return hook

    networks = [model.network, *(substitutes.blocks.values() if substitutes is not None else ())]
    trained = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in trained:
            stack.callback(parameter.requires_grad_(False).requires_grad_, True)
        for index, layer in enumerate(layers):
            for component in components:
                for module in model.anatomy.modules(model.network, layer, component):
                    stack.enter_context(module.register_forward_hook(gate(index, layer), with_kwargs=True))
        yield
