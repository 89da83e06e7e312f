"""A run folder: the name of every file in it, and the record of finished steps."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from radistill.errors import RadistillError
from radistill.files import hash_file, read_json, write_json
from radistill.provenance import machine, versions

MAIN = "hybrid"
"""Name of the hybrid that a run is about; the others are the recipe's arms."""
MOST_RECIPE_BYTES = 2**17
"""Reading more YAML than this takes seconds."""


class HybridFiles:
    """Where the files of one hybrid lie."""

    def __init__(self, folder: Path) -> None:
        """The files of the hybrid in `folder`, whether they are there or not."""
        self.folder = folder
        self.plan = folder / "plan.json"
        self.search = folder / "search"
        self.start = folder / "start"  # converted, before any training
        self.align = folder / "align.json"
        self.rates = folder / "rates"  # trainings that compare learning rates
        self.distill = folder / "distill.json"
        self.distilled = folder / "distilled"  # only where fine-tuning follows
        self.finetuning = folder / "finetune"
        self.finetune = folder / "finetune.json"
        self.student = folder / "student"


class RunFolder:
    """Where the files of a run lie, and what the run has done, so that nothing is done twice.

    A step is current when it was finished with the same inputs, and what it left is there, byte for byte. Its record
    says besides what of the recipe it was made with, and by which versions.
    """

    def __init__(self, path: Path | str) -> None:
        """Open `path`, which need not exist yet."""
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.record = self.path / "run.json"
        self.evaluation = self.path / "evaluation.json"
        self.savings = self.path / "savings.json"
        self.tradeoff = self.path / "tradeoff.json"
        self.promise = self.path / "promise.json"
        self.report = self.path / "report.html"
        self.tasks = self.path / "tasks"
        self.aligned = self.path / "aligned"  # fitted blocks of all hybrids
        self.teacher_store = self.path / "teacher_store"
        self.arms = self.path / "arms"

    def hybrid(self, name: str = MAIN) -> HybridFiles:
        """The files of the main hybrid, or of the arm `name`."""
        return HybridFiles(self.path if name == MAIN else self.arms / name)

    def data(self, stage: str | None = None) -> Path:
        """The folder of the recipe's documents, or of those that a stage has for itself."""
        return self.path / "data" / stage if stage else self.path / "data"

    def teacher_store_record(self, name: str) -> Path:
        """Which store has what some hybrids ask of their teacher."""
        return self.path / f"teacher_store-{name}.json"

    def answers(self, name: str) -> Path:
        """Answers to the held-out prompts that a model has given so far."""
        return self.path / "answers" / f"{name}.jsonl"

    @cached_property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The record of finished steps, by their names.

        Raises:
            RadistillError: if it is damaged.
        """
        if not self.record.exists():
            return {}
        record = read_json(self.record)
        steps = record.get("stages") if isinstance(record, dict) else None
        if isinstance(steps, dict) and all(isinstance(step, dict) for step in steps.values()):
            return steps
        raise RadistillError(f"{self.record}: not a record of a run; remove it to start anew")

    def is_current(self, step: str, inputs: Any, outputs: Sequence[Path]) -> bool:
        """Whether `step` was finished with these inputs, and its outputs are as it left them."""
        done = self.steps.get(step, {})
        hashes = done.get("outputs")
        return (
            "inputs" in done
            and done["inputs"] == _plain(inputs)
            and isinstance(hashes, list)
            and len(hashes) == len(outputs)
            and all(map(_is_whole, hashes, outputs))
        )

    @contextmanager
    def step(
        self,
        step: str,
        inputs: Any,
        outputs: Sequence[Path] = (),
        *,
        recipe: dict[str, Any] | None = None,
        seed: int,
        **told: str,
    ) -> Iterator[Callable[[], None]]:
        """Record `step` as finished if the block ends well.

        What it gives has to be called before anything is replaced of what the step left before: from then on it counts
        as not done. A block that ends, or is killed, before that leaves the old outputs with their record.

        Args:
            step: its name.
            inputs: all that it depends on.
            outputs: what it leaves; the block may add to it.
            recipe: what of the recipe it is made with.
            seed: of the run.
            told: what else a reader of the record is told.
        """
        started = time.perf_counter()
        yield lambda: self.forget(step, seed)
        self.steps.pop(step, None)  # steps are in the order in which they ran
        self.steps[step] = {
            "inputs": _plain(inputs),
            "outputs": [hashes_of(output) for output in outputs],
            "recipe": recipe or {},
            **told,
            "versions": versions(),
            "seconds": round(time.perf_counter() - started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write(seed)

    def forget(self, step: str, seed: int) -> None:
        """Let `step` count as not done, before anything of what it has left is touched."""
        if self.steps.pop(step, None) is not None:
            self._write(seed)

    def hand_over(self, step: str, to: str, moved: Sequence[tuple[Path, Path]], seed: int) -> None:
        """Let what `step` has left be what `to` has left. A kill in between costs the step, and nothing else.

        Args:
            step, to: names of steps; what `to` has left before is replaced.
            moved: from where to where each output goes.
            seed: of the run.
        """
        self.forget(to, seed)
        for source, target in moved:
            if target.is_dir():
                shutil.rmtree(target)
            source.replace(target)
        self.steps[to] = self.steps.pop(step)
        self._write(seed)

    def _write(self, seed: int) -> None:
        write_json(self.record, {"versions": versions(), "machine": machine(), "seed": seed, "stages": self.steps})


def student_of(path: Path, name: str = MAIN) -> HybridFiles:
    """The files of a hybrid that has been trained.

    Raises:
        RadistillError: if it has not.
    """
    files = RunFolder(path).hybrid(name)
    if not (files.student / "config.json").is_file():
        raise RadistillError(
            f"{files.student}: this run has no student there yet; run `radistill run --out {path}` first"
        )
    return files


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    folder = RunFolder(path)
    return any(file.is_file() for file in (folder.recipe, folder.record, folder.hybrid().plan))


def _plain(inputs: Any) -> Any:
    """Inputs as JSON gives them back."""
    return json.loads(json.dumps(inputs))


def hashes_of(output: Path) -> str | dict[str, str] | None:
    """SHA-256 of a file, of each file in a folder, or None where there is neither."""
    if output.is_dir():
        files = (file for file in output.rglob("*") if file.is_file())
        return {file.relative_to(output).as_posix(): hash_file(file) for file in sorted(files)}
    return hash_file(output) if output.is_file() else None


def _is_whole(hashes: Any, output: Path) -> bool:
    """Whether an output still has what it was left with; what was laid beside it is not its business."""
    if isinstance(hashes, dict):
        return bool(hashes) and all(_is_whole(of, output / name) for name, of in hashes.items())
    return output.is_file() and hashes == hash_file(output)
