"""How many of a kept branch's tokens are put to the target: by the drafter's confidence, or as H-RAD says.

H-RAD (arXiv 2506.01979) is a small network that looks at the target before it reads: at the hidden states of its last
four layers where it chose the newest token, and at that token's embedding. It expects one of three: the target rejects
all of the continuation, some, or none.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from radistill.errors import RadistillError
from radistill.files import atomic_file
from radistill.models.loading import Model

CONFIDENCE = 0.5
NONE, SOME, ALL = range(3)
"""What a target accepts of a continuation."""

_LAYERS = 4
_WIDTHS = (256, 64)
_DROPOUT = 0.2
_ROLES = ("target", "drafter")


def until_unsure(confidences: Sequence[float], confidence: float | None) -> int:
    """Number of places before the first one where no token has this probability.

    Args:
        confidences: the drafter's largest probability at each place of a continuation, and at the place after it.
        confidence: the least one; None is never unsure.
    """
    places = len(confidences) - 1
    if confidence is None:
        return places
    return next((place for place in range(places) if not confidences[place] >= confidence), places)


class LengthNetwork(nn.Module):
    """H-RAD: three layers over what the target knows at its newest token."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int) -> None:
        """Untrained, for so many inputs."""
        super().__init__()
        sizes = (inputs, *_WIDTHS)
        hidden = [
            module
            for size, width in pairwise(sizes)
            for module in (nn.Linear(size, width), nn.ReLU(), nn.Dropout(_DROPOUT))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], 3))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def forward(self, states: Tensor) -> Tensor:
        """Logits of none, some and all, [..., 3], for states [..., inputs]."""
        return self.layers((states - self.mean) / self.scale)

    @torch.inference_mode()
    def expects(self, states: Tensor) -> Tensor:
        """`NONE`, `SOME` or `ALL`, [...]."""
        return self(states).argmax(dim=-1)


@dataclass(frozen=True)
class Length:
    """How many of a kept branch's tokens are put to the target.

    Attributes:
        confidence: a continuation is cut before a place where no token has this probability; None never cuts it.
        network: decides whether confidence counts at all; None lets it count always.
    """

    confidence: float | None = CONFIDENCE
    network: LengthNetwork | None = None

    def proposed(self, confidences: Sequence[float], states: Tensor | None) -> int:
        """The number of tokens.

        Args:
            confidences: as `until_unsure` takes them.
            states: [inputs], what `newest` returns; only a network needs them.
        """
        expected = SOME
        if self.network is not None:
            assert states is not None
            expected = int(self.network.expects(states.to(self.network.mean.device)))
        return 0 if expected == NONE else until_unsure(confidences, self.confidence if expected == SOME else None)


@contextmanager
def watched(model: Model) -> Iterator[list[Tensor]]:
    """Within the block, a list holds what the last four layers put out in the latest pass: [batch, time, hidden]."""
    layers = list(model.anatomy.layers(model.network))[-_LAYERS:]
    found: list[Tensor] = [torch.empty(0)] * len(layers)

    def keeping(index: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[index] = output[0] if isinstance(output, tuple) else output

        return keep

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.enter_context(layer.register_forward_hook(keeping(index)))
        yield found


def newest(model: Model, states: Sequence[Tensor], places: Tensor, tokens: Tensor) -> Tensor:
    """What the network sees of newest tokens, [tokens, inputs] in float32.

    Args:
        model: the target.
        states: of its last layers in a pass over one text, [1, time, hidden] each.
        places: [tokens], where in the pass each token was chosen: at the one before it.
        tokens: [tokens], the tokens.
    """
    embedded: Tensor = model.network.get_input_embeddings()(tokens)
    return torch.cat([*(state[0, places] for state in states), embedded], dim=-1).float()


def states_in(model: Model, text: Tensor, places: Tensor) -> Tensor:
    """What the network sees at several places of a text, [places, inputs], from one pass of the target.

    `text` is [tokens], `places` [places], of the newest token each time; above 0.
    """
    with watched(model) as states:
        model.network(input_ids=text[None], use_cache=False, logits_to_keep=1)
        return newest(model, states, places - 1, text[places])


def save_length(network: LengthNetwork, path: Path, target: Model, drafter: Model, draft_length: int) -> None:
    """Write a network, with the fingerprints of both models and the draft length that it was trained for."""
    about = {"target": target.fingerprint, "drafter": drafter.fingerprint, "draft_length": str(draft_length)}
    with atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary, about)


def load_length(path: Path, target: Model, drafter: Model, draft_length: int) -> LengthNetwork:
    """Read what `save_length` wrote.

    Raises:
        RadistillError: if it is not such a file, or was trained for other models or another draft length.
    """
    way_out = "; `radistill drafter train-length` makes one"
    if not path.is_file():
        raise RadistillError(f"{path}: no such file{way_out}")
    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = LengthNetwork(len(tensors["mean"]))
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError):
        raise RadistillError(f"{path}: holds no network for the length of drafts{way_out}") from None
    for role, model in zip(_ROLES, (target, drafter), strict=True):
        if about.get(role) != model.fingerprint:
            raise RadistillError(
                f"{path}: was trained for another {role} than {model.source}, or with another --dtype{way_out}"
            )
    if about.get("draft_length") != str(draft_length):
        raise RadistillError(
            f"{path}: was trained for draft length {about.get('draft_length')}, not {draft_length}; give "
            f"--draft-length {about.get('draft_length')}"
        )
    return network.eval().to(target.network.device)
