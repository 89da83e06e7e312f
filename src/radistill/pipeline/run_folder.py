"""A run folder: recipe, records of finished steps, and the lock that keeps a second process out."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from radistill.errors import RadistillError
from radistill.files import hash_json, read_json, write_json
from radistill.provenance import machine, versions


class RunFolder:
    """Keeps what a run has done, so that nothing is done twice.

    A step is current when it was finished with the same inputs and its outputs are still there.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, which need not exist yet."""
        self.path = path
        self._record_path = path / "run.json"
        self._steps: dict[str, dict[str, Any]] = {}
        if self._record_path.exists():
            record = read_json(self._record_path)
            steps = record.get("stages") if isinstance(record, dict) else None
            whole = isinstance(steps, dict) and all(
                isinstance(step, dict) and "fingerprint" in step for step in steps.values()
            )
            if not whole:
                raise RadistillError(f"{self._record_path}: not a record of a run; remove it to start anew")
            self._steps = record["stages"]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. The lock goes with the process, however that ends.

        Raises:
            RadistillError: if another process holds it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RadistillError(f"{self.path}: is a file; choose a folder with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise RadistillError(
                    f"{self.path}: another run (process {handle.read().strip() or 'unknown'}) is using this folder; "
                    "wait for it to end or choose another --out"
                ) from None
            handle.seek(0)
            handle.truncate()
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def is_current(self, step: str, inputs: Any, outputs: list[Path]) -> bool:
        """Whether `step` was finished with these inputs and has all its outputs."""
        done = self._steps.get(step)
        return done is not None and done["fingerprint"] == hash_json(inputs) and all(p.exists() for p in outputs)

    @contextmanager
    def step(self, step: str, inputs: Any, seed: int) -> Iterator[None]:
        """Record `step` as finished if the block ends well. Until then it counts as not done."""
        if self._steps.pop(step, None) is not None:
            self._write(seed)
        started = time.perf_counter()
        yield
        self._steps[step] = {
            "fingerprint": hash_json(inputs),
            "seconds": round(time.perf_counter() - started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write(seed)

    def _write(self, seed: int) -> None:
        record = {"versions": versions(), "machine": machine(), "seed": seed, "stages": self._steps}
        write_json(self._record_path, record)
