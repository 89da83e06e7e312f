"""The probe: a fixed batch on which two networks must compute the same logits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from radistill.errors import RadistillError
from radistill.models.anatomy import anatomy_of

SEED = 2505_22135
TIME = 32
TOLERANCE = 1e-4
"""Largest difference of any logit between two networks that hold the same numbers, in units of the logits' root mean
square. On a CPU it has been exactly 0; elsewhere the joined gate and up projections may run in another kernel."""


@dataclass(frozen=True)
class Probe:
    """Random tokens in every kind of row that a model meets.

    Attributes:
        input_ids: [4, time], long: a full row, one padded on the right, one padded on the left, one of a single token.
        attention_mask: [4, time], long; 1 = token.
        positions: [1, time], long, for a second pass over the first row: stretched over the whole context, because
            scaled rotary frequencies differ visibly only far from the start.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor


def probe_batch(vocab_size: int, context: int, device: torch.device | str = "cpu") -> Probe:
    """The probe for a vocabulary and a context length; the same in every process."""
    generator = torch.Generator().manual_seed(SEED)
    input_ids = torch.randint(vocab_size, (4, TIME), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 2 * TIME // 3 :] = 0
    attention_mask[2, : TIME // 3] = 0
    attention_mask[3, 1:] = 0
    positions = torch.linspace(0, max(context, TIME) - 1, TIME).long()[None]
    return Probe(input_ids.to(device), attention_mask.to(device), positions.to(device))


@torch.no_grad()
def probe_logits(network: PreTrainedModel, probe: Probe) -> Tensor:
    """Logits of all real tokens of the probe, [tokens, vocab], float32; both passes.

    All is computed in float32, whatever the weights are stored in: two networks then differ by what they hold, and not
    by where each of them rounds.
    """
    ids, mask = probe.input_ids, probe.attention_mask
    with _in_float32(network):
        rows = network(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        # The mask is passed along so that no network mistakes gaps between positions for packed sequences.
        far = network(input_ids=ids[:1], attention_mask=mask[:1], position_ids=probe.positions, use_cache=False).logits
    return torch.cat([rows, far[0]]).float()


def prove_equal(reference: Tensor, candidate: Tensor, claim: str, tolerance: float = TOLERANCE) -> float:
    """Largest difference between two [tokens, vocab] logits.

    Args:
        reference: logits of the network that is right by definition.
        candidate: logits of the network under test.
        claim: what the difference would refute, for the message.
        tolerance: the most that it may be, in units of the reference's root mean square.

    Raises:
        RadistillError: if it is more, or not a number.
    """
    difference = (reference - candidate).abs().max().item()
    allowed = tolerance * reference.square().mean().sqrt().item()
    if not difference <= allowed:
        raise RadistillError(
            f"proof failed: {claim}, but on the probe batch their logits differ by up to {difference:.3g}; allowed is "
            f"{allowed:.3g} ({tolerance:g} times their root mean square)"
        )
    return difference


@contextmanager
def _in_float32(network: PreTrainedModel) -> Iterator[None]:
    """Let each decoder layer, and what is beside them, compute with float32 copies of its parameters.

    The copies of one layer are made when it is called and dropped when it returns, so that there is room for them.
    """
    layers = list(anatomy_of(network).layers(network))
    inside = {id(module) for layer in layers for module in layer.modules()}
    owners = [[*layer.modules()] for layer in layers]
    owners += [[module] for module in network.modules() if id(module) not in inside]
    with ExitStack() as stack:
        for modules in owners:
            kept = [(module, dict(module._parameters)) for module in modules if module._parameters]
            if any(parameter is not None and parameter.itemsize < 4 for _, own in kept for parameter in own.values()):
                stack.enter_context(_widened(modules[0], kept))
        yield


@contextmanager
def _widened(called: nn.Module, kept: list[tuple[nn.Module, dict[str, Any]]]) -> Iterator[None]:
    def widen(*_: Any) -> None:
        for module, own in kept:
            for name, parameter in own.items():
                module._parameters[name] = None if parameter is None else nn.Parameter(parameter.float(), False)

    def put_back(*_: Any) -> None:
        for module, own in kept:
            module._parameters.update(own)

    with called.register_forward_pre_hook(widen), called.register_forward_hook(put_back, always_call=True):
        yield
