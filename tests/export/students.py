"""Students whose SSM blocks speak: those that `zero` and `random` start with put out zero, and would prove nothing."""

import torch

from radistill.models.loading import Model

REPLACED = [3, 6, 7, 11, 14, 18, 22, 25, 28, 29]

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in 1984,",
    "Water boils at 100 degrees because",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
]


def wake(model: Model, layers: list[int], scale: float, seed: int = 0) -> None:
    """Give the SSM blocks of `layers` a random output projection of standard deviation `scale` / sqrt(width)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            weight = model.anatomy.mixer(model.network, layer).out_proj.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale * weight.shape[1] ** -0.5)
