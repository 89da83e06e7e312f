"""Checkpoints that are either whole or ignored.

The files of a checkpoint are written one after the other. Once all of them have reached the disk, a marker with their
hashes follows. A folder without it was cut short; one whose files are not those of its marker is damaged: both are
removed. Before an old checkpoint is deleted, its marker goes first. So whenever a process dies, the last marked
checkpoint is whole.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from radistill.console import note
from radistill.errors import RadistillError
from radistill.files import hash_file, read_json, write_json
from radistill.processes import ALONE, Processes

MARKER = "COMPLETE"
WEIGHTS = "trainable.safetensors"
OPTIMIZER = "optimizer.pt"
LOG = "log.json"
RANDOM = "random-{}.pt"
KEPT = 2

# Without them, nothing can go on as it would have. There is the random state of at least one process.
_NEEDED = {WEIGHTS, OPTIMIZER, LOG, RANDOM.format(0)}


class Checkpoints:
    """The checkpoints of one training run.

    They lie in `folder/checkpoints/<first letters of the run's key>/checkpoint-<step>`, so that a run with another key,
    that is with other settings, data or models, neither resumes from them nor overwrites them. Each has the trained
    weights, the state of optimiser and schedule, the log, and each process's state of random numbers.
    """

    def __init__(self, folder: Path, key: str, processes: Processes = ALONE) -> None:
        """`key` is a hash of everything that the run's result depends on.

        Raises:
            RadistillError: if the folder cannot be made.
        """
        self.folder = folder / "checkpoints" / key[:16]
        self._processes = processes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RadistillError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def latest(self) -> Path | None:
        """The complete checkpoint with the highest step; removes those that are not complete.

        The weights to keep may be those of an earlier step. Where its checkpoint is damaged, this one is of no use.
        """
        whole = [checkpoint for checkpoint in self._all() if _is_whole(checkpoint)]
        usable = [checkpoint for checkpoint in whole if self._kept_with(checkpoint) in (None, *whole)]
        for checkpoint in self._all():
            if checkpoint not in whole or not usable or _step(checkpoint) > _step(usable[-1]):
                shutil.rmtree(checkpoint)
        return usable[-1] if usable else None

    def others(self) -> bool:
        """Whether there are checkpoints of runs with another key."""
        return any(path != self.folder for path in self.folder.parent.iterdir())

    def save(
        self,
        step: int,
        kept_step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        log: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        """Write the checkpoint of `step`; all processes must ask for it together.

        The last two are kept, and with each of them that of the step whose weights were to be kept then.

        Args:
            step: from 1.
            kept_step: whose weights would come out if the run ended now; 0 if none of a checkpoint.
            weights: whole tensors.
            optimizer: states of optimiser and schedule.
            log: plain data.
            device: whose random numbers count.

        Raises:
            RadistillError: if it cannot be written.
        """
        checkpoint = self._of_step(step)
        try:
            checkpoint.mkdir(exist_ok=True)
            if self._processes.is_main:
                save_file(dict(weights), checkpoint / WEIGHTS)
                torch.save(optimizer, checkpoint / OPTIMIZER)
                write_json(checkpoint / LOG, {"kept_step": kept_step, **log})
            torch.save(_random_state(device), self._random(checkpoint))
            self._processes.wait()
            if self._processes.is_main:
                self._finish(checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise RadistillError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({reason}); "
                "make room and start again, training goes on from the checkpoint before"
            ) from error

    def load(self, checkpoint: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Weights, states and log of a complete checkpoint; random numbers on the CPU and on `device` go on from it."""
        if self._random(checkpoint).exists():  # not after a change of the number of processes
            states = torch.load(self._random(checkpoint), weights_only=True)
            torch.set_rng_state(states["cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"], device)
        optimizer = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        log = read_json(checkpoint / LOG)
        del log["kept_step"]
        return load_file(checkpoint / WEIGHTS), optimizer, log

    def weights(self, step: int) -> dict[str, Tensor]:
        """The trained weights after a step that has a checkpoint."""
        return load_file(self._of_step(step) / WEIGHTS)

    def _of_step(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def _random(self, checkpoint: Path) -> Path:
        return checkpoint / RANDOM.format(self._processes.index)

    def _kept_with(self, checkpoint: Path) -> Path | None:
        """The checkpoint whose weights were to be kept when this one was written; None if there was none."""
        step: int = read_json(checkpoint / LOG)["kept_step"]
        return self._of_step(step) if step else None

    def _finish(self, checkpoint: Path) -> None:
        """Mark a checkpoint, all of whose files are written, as complete, and remove those that are not needed."""
        for path in [*checkpoint.iterdir(), checkpoint]:
            _to_disk(path)
        write_json(checkpoint / MARKER, _hashes(checkpoint))
        last = self._all()[-KEPT:]
        needed = {*last, *map(self._kept_with, last)}
        for old in self._all():
            if old not in needed:
                (old / MARKER).unlink(missing_ok=True)
                _to_disk(old)
                shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdecimal()), key=_step)


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of `distill(..., folder=folder)`: for the caller, once the trained student is saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    if not (checkpoint / MARKER).exists():
        return False
    with suppress(RadistillError):
        marked = read_json(checkpoint / MARKER, dict)
        if marked.keys() >= _NEEDED and marked.items() <= _hashes(checkpoint).items():
            return True
    note(f"{checkpoint}: is damaged, so it is removed and not gone on from")
    return False


def _hashes(checkpoint: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(checkpoint.iterdir()) if path.name != MARKER}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
