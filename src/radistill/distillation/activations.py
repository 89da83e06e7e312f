"""What goes into each attention of a teacher and what comes out: recorded in one reading, in memory or on disk."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from radistill.console import progress
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.sequences import Batch, Document, batches, collate
from radistill.processes import ALONE, Processes

_SHARE_OF_DISK = 0.5
"""Of the free disk, what may be filled with activations at a time."""


class Activations(NamedTuple):
    """Input and output of one attention for one batch: both [batch, time, hidden]; mask is [batch, time]."""

    inputs: Tensor
    outputs: Tensor
    mask: Tensor


class Pass(NamedTuple):
    """Layers that are recorded in one reading of the documents, and where: a folder, or in memory if it is None."""

    layers: list[int]
    folder: Path | None


def passes(
    layers: Sequence[int], per_layer: int, gib: float, folder: Path | None, processes: Processes = ALONE
) -> list[Pass]:
    """In how many readings the layers are recorded: one, unless neither memory nor disk has room for all.

    Several processes hand activations to one another on disk.

    Args:
        layers: to be recorded.
        per_layer: bytes of one layer's activations.
        gib: room in memory.
        folder: where there may be shards; None is nowhere.
        processes: who take part.

    Raises:
        RadistillError: if several processes have no folder.
    """
    if not layers:
        return []
    if folder is None and processes.count > 1:
        raise RadistillError("align: several processes need a folder, through which they hand blocks to one another")
    in_memory = max(1, int(gib * 2**30 // per_layer))
    on_disk = 0
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        on_disk = int(_SHARE_OF_DISK * shutil.disk_usage(folder).free // per_layer)
    uses_disk = processes.count > 1 or (in_memory < len(layers) and in_memory < on_disk)
    at_once = max(1, on_disk if uses_disk else in_memory)
    found = []
    for at in range(0, len(layers), at_once):
        # A name by which it is removed with the other leftovers, if this process is killed.
        place = folder / f".activations-{at}.{os.getpid()}.tmp" if folder is not None and uses_disk else None
        found.append(Pass(list(layers[at : at + at_once]), place))
    return found


@dataclass(frozen=True)
class OfLayer(Sequence[Activations]):
    """One layer's activations; those of a batch that lie in a file are read when they are asked for."""

    batches: Sequence[dict[str, Tensor] | Path]
    layer: int
    device: torch.device

    def __len__(self) -> int:
        """Batches."""
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        """The activations of one batch."""
        batch, names = self.batches[index], (f"{self.layer}.inputs", f"{self.layer}.outputs", "mask")
        if isinstance(batch, dict):
            return Activations(*(batch[name] for name in names))
        with safe_open(batch, "pt", device=str(self.device)) as file:
            return Activations(*(file.get_tensor(name) for name in names))


Recorded = dict[int, Sequence[Activations]]
"""By layer, the activations of each batch."""


@contextmanager
def recorded_attentions(
    teacher: Model,
    which: Pass,
    splits: Sequence[Sequence[Document]],
    tokens_per_batch: int,
    processes: Processes = ALONE,
) -> Iterator[list[Recorded]]:
    """Record the attention of layers for each split of the documents; what lies on disk is gone after the block.

    Where one of several processes fails, another may still read it: it goes with the leftovers at the next start.

    Args:
        teacher: the model.
        which: the layers, and where their activations go.
        splits: the documents.
        tokens_per_batch: padded tokens in one forward pass.
        processes: who share the batches; all must call this together.

    Raises:
        RadistillError: if an attention has inputs or outputs that are not finite.
    """
    groups = [batches(documents, tokens_per_batch) for documents in splits]
    units = [(split, at, group) for split, part in enumerate(groups) for at, group in enumerate(part)]
    folder, device = which.folder, teacher.network.device
    in_memory: list[list[dict[str, Tensor] | Path]] = [[] for _ in splits]

    def record(unit: tuple[int, int, list[Document]]) -> list[int]:
        """Keep the activations of a batch; the layers in which some are not finite."""
        split, at, group = unit
        found = _read(teacher, which.layers, collate(group, teacher.pad_token_id, device))
        if folder is None:
            in_memory[split].append(found)
        else:
            save_file(found, _file(folder, split, at))
        return [int(name.partition(".")[0]) for name, tensor in found.items() if not tensor.isfinite().all()]

    nobody_reads = processes.count == 1
    try:
        if folder is not None:
            folder.mkdir(exist_ok=True)
        with progress("teacher activations", len(units), "batches") as advance:
            broken = set(chain.from_iterable(processes.share(units, record, lambda done: advance(len(done)))))
        if broken:
            raise RadistillError(
                f"align: the attention of layer {min(broken)} has inputs or outputs that are not finite; "
                "check the source model's weights, or load it with dtype float32"
            )
        kept = in_memory
        if folder is not None:
            kept = [[_file(folder, split, at) for at in range(len(part))] for split, part in enumerate(groups)]
        yield [{layer: OfLayer(part, layer, device) for layer in which.layers} for part in kept]
        nobody_reads = True
    finally:
        if folder is not None and nobody_reads and processes.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _file(folder: Path, split: int, batch: int) -> Path:
    return folder / f"{split}-{batch:06d}.safetensors"


@torch.inference_mode()
def _read(teacher: Model, layers: Sequence[int], batch: Batch) -> dict[str, Tensor]:
    """What goes into and comes out of the attention of each of `layers`, of one batch, and its mask."""
    found = {"mask": batch.attention_mask}

    def listener(layer: int) -> Any:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            outputs = output[0] if isinstance(output, tuple) else output
            for name, tensor in (("inputs", inputs), ("outputs", outputs)):
                found[f"{layer}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)

        return listen

    with ExitStack() as stack:
        for layer in layers:
            mixer = teacher.anatomy.mixer(teacher.network, layer)
            stack.enter_context(mixer.register_forward_hook(listener(layer), with_kwargs=True))
        # The logits are not needed; one position is the least that can be asked for.
        teacher.network(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False
        )
    return found
