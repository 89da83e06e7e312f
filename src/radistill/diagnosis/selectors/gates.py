"""Gates on all attention layers at once, trained under a budget: FlashMorph's idea (arXiv 2606.30562)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from radistill.console import progress
from radistill.diagnosis.selectors.base import Problem, Selection, most_redundant
from radistill.models.anatomy import Component
from radistill.models.loading import Model


class Gates(BaseModel):
    """A factor in [0, 1] on every attention's output, trained by KL to the full model; the smallest ones go."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["gates"] = "gates"
    steps: int = Field(default=24, ge=1, description="gradient steps, each over all calibration documents")
    learning_rate: float = Field(default=0.1, gt=0, description="of Adam, on the gates")
    judge_every: int = Field(default=2, ge=1, description="steps after which the set of the smallest gates is judged")

    def most_passes(self, candidates: int, budget: int) -> int:
        """Forward and backward of each step, and the judged sets."""
        return 2 * self.steps + self.steps // self.judge_every + 1

    def select(self, problem: Problem) -> Selection:
        """Train the gates, and choose the best of the sets that they passed through.

        The gates always add up to the number of layers that stay: every step is followed by a projection onto that
        budget. They start equal. Weights get no gradient and do not change, so a step costs about two forward passes.
        """
        trials = problem.trials
        kept = len(problem.candidates) - problem.budget
        gates = torch.full((len(problem.candidates),), kept / len(problem.candidates), dtype=torch.float64)
        gates.requires_grad_()
        optimiser = torch.optim.Adam([gates], lr=self.learning_rate)
        with progress("train gates", self.steps, "steps") as advance:
            for step in range(1, self.steps + 1):
                trials.spend(2 * trials.calibration_tokens)
                optimiser.zero_grad()
                with gated(trials.model, problem.candidates, gates):
                    kl = trials.differentiate()
                optimiser.step()
                with torch.no_grad():
                    gates.copy_(project(gates, kept))
                status = f"KL {kl:.4f}"
                if step % self.judge_every == 0 or step == self.steps:
                    scores = dict(zip(problem.candidates, (-gates.detach()).tolist(), strict=True))
                    status += f", set {trials.value(most_redundant(scores, problem.budget)):.4f}"
                advance(1, status)
        best = trials.best(problem.budget)
        assert best is not None  # the last step is judged
        return Selection(best, scores, "minus the trained gate on this layer's attention")


@contextmanager
def gated(model: Model, layers: Sequence[int], gates: Tensor) -> Iterator[None]:
    """Multiply the attention output of `layers` by `gates` [layers]; afterwards the model is as it was.

    Inside, gradients flow to the gates only: the weights are frozen.
    """

    def gate(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            added = output[0] if isinstance(output, tuple) else output
            scaled = added * gates[index].to(added)
            return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

        return hook

    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    handles = []
    try:
        model.network.requires_grad_(False)
        for index, layer in enumerate(layers):
            for module in model.anatomy.modules(model.network, layer, Component.ATTENTION):
                handles.append(module.register_forward_hook(gate(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


def project(gates: Tensor, total: float) -> Tensor:
    """The closest point of {0 <= g <= 1, sum g = total}: clip(gates - shift, 0, 1) for the one shift that fits.

    Args:
        gates: [layers].
        total: from 0 to the number of layers.
    """
    low, high = gates.min() - 1, gates.max()
    for _ in range(60):  # the sum falls as the shift grows
        middle = (low + high) / 2
        if (gates - middle).clamp(0, 1).sum() > total:
            low = middle
        else:
            high = middle
    return (gates - (low + high) / 2).clamp(0, 1)
