"""Documents of a batch in one row, without padding, where a network can be told where each of them begins.

That needs kernels for sequences of variable length: a flash attention, and those of the packages that transformers
takes for convolutions and scans. Which of them are there, and whether all layers heed the bounds, is not asked of
packages and versions: two documents in one row are the test.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from radistill.console import note
from radistill.distillation.modes import computing, is_half
from radistill.models.checkpoint import one_line
from radistill.models.generation import seeded
from radistill.models.loading import Model
from radistill.models.logits import PACKS
from radistill.models.sequences import Document, collate, packed

# Lengths of the two documents of the test: the second begins inside a chunk of every scan, and ends in a later one.
_BEFORE, _AFTER = 100, 300


@contextmanager
def packing(
    model: Model, who: str, compute: torch.dtype | None = None, new: Collection[str] = (), wanted: bool = True
) -> Iterator[None]:
    """Within the block, the network reads the documents of a batch in one row, if it keeps them apart there.

    It runs the flash attention that it has, or, on a GPU and in a half-precision format, the one that is installed.
    Where there is none, or the test fails, nothing changes: one document is one row, padded. Which documents are a
    batch never depends on it, and losses only by rounding, so a training may go on where it is otherwise.

    Args:
        model: one that reads images too is left alone.
        who: for the line on the terminal, such as "distill: the student".
        compute: format of matrix products; None is that of the weights.
        new: parameters, by name, that may say nothing yet.
        wanted: False is without.
    """
    network, before = model.network, model.network.config._attn_implementation
    flash = _flash_attention(network, compute) if wanted and model.reader is None else None
    if flash is None:
        yield
        return
    try:
        network.set_attn_implementation(flash)
        with computing(compute, network.device):
            obstacle = "" if keeps_apart(network, new) else "a document is not read the same after another one"
    except Exception as error:  # a missing kernel shows as one of many exceptions
        obstacle = one_line(error)
    if obstacle:
        network.set_attn_implementation(before)
        note(f"{who} pads documents, as it cannot pack them ({obstacle})")
    else:
        note(f"{who} reads the documents of a batch packed in one row, without padding ({flash})")
        vars(network)[PACKS] = True
    try:
        yield
    finally:
        vars(network).pop(PACKS, None)
        network.set_attn_implementation(before)


def keeps_apart(network: PreTrainedModel, new: Collection[str] = ()) -> bool:
    """Whether a document in a packed row is read the same, to the last bit, whatever the one before it says.

    Args:
        network: in the mode, and under the autocast, in which it will read.
        new: parameters, by name, that are tried with random numbers: a block that says nothing could hide a leak.

    Raises:
        Exception: of whatever kind, where a layer or kernel refuses packed rows.
    """
    draw = torch.Generator().manual_seed(0)
    vocabulary = network.config.get_text_config().vocab_size
    first, other, second = (torch.randint(vocabulary, (n,), generator=draw) for n in (_BEFORE, _BEFORE, _AFTER))
    parameters = dict(network.named_parameters())
    random = {}
    for name in sorted(new):
        own = parameters[name]
        scale = own.shape[-1] ** -0.5 if own.ndim > 1 else 1.0
        random[name] = (scale * torch.randn(own.shape, generator=draw)).to(own)

    def read(before: Tensor) -> Tensor:
        documents = [Document("", tuple(tokens.tolist()), 1) for tokens in (before, second)]
        batch = packed(collate(documents, 0, network.device))
        arguments = {**batch.arguments, "use_cache": False, "logits_to_keep": len(second)}
        with torch.no_grad(), seeded(network.device, 0):  # dropout would differ
            logits: Tensor = functional_call(network, random, (batch.input_ids,), arguments).logits
        return logits

    return torch.equal(read(first), read(other))


def _flash_attention(network: PreTrainedModel, compute: torch.dtype | None) -> str | None:
    """What to run for attention to be told where documents begin; None where there is nothing."""
    own: str = network.config._attn_implementation
    if "flash" in own:
        return own
    installed = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if network.device.type != "cuda" or not is_half(compute or network.dtype):
        return None
    return next((name for name, there in installed.items() if there()), None)
