"""The mixer `average`: a moving average of projected tokens, behind a gate. How fast it forgets is no weight."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from radistill.mixers.interface import AttentionShape, Context, Initialisation, Mixer


@dataclass(frozen=True)
class AverageGeometry:
    width: int
    decay: float

    @property
    def state_numbers(self) -> int:
        return self.width

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "AverageGeometry":
        return cls(config.average_width, config.average_decay)


class Average(nn.Module):
    """s_t = decay s_(t-1) + (1 - decay) x_t; the output is a projection of silu(z_t) s_t."""

    def __init__(self, config: PreTrainedConfig, layer: int) -> None:
        super().__init__()
        self.geometry, self.layer = AverageGeometry.of(config), layer
        self.read = nn.Linear(config.hidden_size, 2 * self.geometry.width, bias=False)
        self.write = nn.Linear(self.geometry.width, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, cache: Any = None) -> Tensor:
        time, decay = hidden_states.shape[1], self.geometry.decay
        x, gate = self.read(hidden_states).chunk(2, dim=-1)
        if attention_mask is not None:
            x = x * attention_mask[:, -time:, None]
        steps = torch.arange(time, device=x.device)
        weights = (1 - decay) * decay ** (steps[:, None] - steps).clamp(min=0).to(x.dtype)
        state = weights.tril() @ x
        if cache is not None:
            earlier = cache.layers[self.layer].recurrent_states[0]
            if earlier is not None:
                state = state + decay ** (steps[:, None] + 1).to(x.dtype) * earlier[:, None]
            cache.update_recurrent_state(state[:, -1], self.layer)
        return self.write(F.silu(gate) * state)


def fill(block: Average, attention: Any, context: Context) -> None:
    block.read.weight.copy_(torch.randn(block.read.weight.shape, generator=context.generator) * 0.2)
    block.write.weight.zero_()


def obstacles(geometry: AverageGeometry, shape: AttentionShape) -> list[str]:
    return [] if geometry.width <= 64 else [f"average_width is {geometry.width}; it can be 64"]


AVERAGE = Mixer(
    kind="average",
    title="Moving Average",
    phrase="a moving average",
    initialisations={
        "fitted": Initialisation(fill, obstacles, silent=True, summary="random, then fitted", needs_fit=True),
        "still": Initialisation(fill, obstacles, silent=True, summary="random"),
    },
    silent="still",
    geometry=AverageGeometry.of,
    output=lambda block: block.write,
)
