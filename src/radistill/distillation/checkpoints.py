"""Checkpoints that are either whole or ignored.

transformers' Trainer writes the files of a checkpoint one after the other. Here, once all of them have reached the
disk, a marker follows. A folder without it was cut short and is removed; before an old checkpoint is deleted, its
marker goes first. So whenever a process dies, the last marked checkpoint is whole.
"""

import os
import shutil
from pathlib import Path

from radistill.errors import RadistillError
from radistill.files import write_text

MARKER = "COMPLETE"
KEPT = 2


class Checkpoints:
    """The checkpoints of one training run.

    They lie in `folder/checkpoints/<first letters of the run's key>/checkpoint-<step>`, so that a run with another key,
    that is with other settings, data or models, neither resumes from them nor overwrites them.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """`key` is a hash of everything that the run's result depends on.

        Raises:
            RadistillError: if the folder cannot be made.
        """
        self.folder = folder / "checkpoints" / key[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RadistillError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def latest(self) -> Path | None:
        """The complete checkpoint with the highest step; removes those that are not complete."""
        complete = None
        for checkpoint in self._all():
            if (checkpoint / MARKER).exists():
                complete = checkpoint
            else:
                shutil.rmtree(checkpoint)
        return complete

    def others(self) -> bool:
        """Whether there are checkpoints of runs with another key."""
        return any(path != self.folder for path in self.folder.parent.iterdir())

    def of_step(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"checkpoint-{step}"

    def finish(self, step: int, keep: int | None = None) -> None:
        """Mark the checkpoint of `step`, all of whose files are written, as complete.

        The last two are kept, and that of the step `keep`.
        """
        checkpoint = self.of_step(step)
        for path in [*checkpoint.iterdir(), checkpoint]:
            _to_disk(path)
        write_text(checkpoint / MARKER, f"{step}\n")
        for old in self._all()[:-KEPT]:
            if keep is not None and old == self.of_step(keep):
                continue
            (old / MARKER).unlink(missing_ok=True)
            _to_disk(old)
            shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of `distill(..., folder=folder)`: for the caller, once the trained student is saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
