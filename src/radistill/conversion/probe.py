"""The probe: a fixed batch on which two networks must compute the same logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from radistill.errors import RadistillError

SEED = 2505_22135
TIME = 32
# Largest difference of any logit, in units of the logits' root mean square. In float32 on a CPU it has been exactly 0;
# elsewhere the joined gate and up projections may run in another kernel.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


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
    """Logits of all real tokens of the probe, [tokens, vocab], float32; both passes."""
    ids, mask = probe.input_ids, probe.attention_mask
    rows = network(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    # The mask is passed along so that no network mistakes gaps between positions for packed sequences.
    far = network(input_ids=ids[:1], attention_mask=mask[:1], position_ids=probe.positions, use_cache=False).logits[0]
    return torch.cat([rows, far]).float()


def prove_equal(reference: Tensor, candidate: Tensor, dtype: torch.dtype, claim: str) -> float:
    """Largest difference between two [tokens, vocab] logits.

    Args:
        reference: logits of the network that is right by definition.
        candidate: logits of the network under test.
        dtype: what the networks compute in; sets the tolerance.
        claim: what the difference would refute, for the message.

    Raises:
        RadistillError: if it exceeds `TOLERANCE` times the reference's root mean square, or is not a number.
    """
    difference = (reference - candidate).abs().max().item()
    scale = reference.square().mean().sqrt().item()
    allowed = TOLERANCE[dtype] * scale
    if not difference <= allowed:
        raise RadistillError(
            f"proof failed: {claim}, but on the probe batch their logits differ by up to {difference:.3g}; allowed is "
            f"{allowed:.3g} ({TOLERANCE[dtype]:g} times their root mean square, {dtype})"
        )
    return difference
