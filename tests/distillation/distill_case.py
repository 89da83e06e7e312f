"""A distillation small enough to run in a test; run as a program, it is the one that gets killed.

python distill_case.py FOLDER [--stored] WHERE
"""

import copy
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radistill.conversion import convert, new_parameters
from radistill.distillation import checkpoints, loop
from radistill.distillation.distill import DistillResult, distill
from radistill.distillation.settings import DistillSettings, OnPolicySettings
from radistill.distillation.teacher_store import StoredTeacher, TeacherStoreSettings, read, store_teacher, write
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.processes import ALONE, Processes

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

REPLACED = [1, 2]
# 5 batches, two a step: epochs end in the middle of steps, and 12 steps are 4.8 epochs.
RESUMABLE = DistillSettings(
    steps=12,
    tokens_per_batch=110,
    gradient_accumulation=2,
    new_block_learning_rate=1e-2,
    other_learning_rate=1e-3,
    eval_steps=5,
    save_seconds=0,
    report_to="none",
)
OWN = RESUMABLE.model_copy(
    update={"on_policy": OnPolicySettings(share=0.3, final_share=0.9, max_new_tokens=9), "cross_entropy": 0.2}
)
STORED = RESUMABLE.model_copy(update={"teacher_store": TeacherStoreSettings(top_k=6)})


def before_batch(student: Model, number: int, act: Callable[[], None]) -> None:
    """Let `act` happen when the student starts to read its `number`-th batch (from 1) to learn from it."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        if torch.is_grad_enabled():  # neither a measure nor a response that the student writes
            calls.append(1)
            if len(calls) == number:
                act()

    student.network.get_input_embeddings().register_forward_pre_hook(hook)


def with_lost_numbers(student: Model) -> None:
    """Let everything that the student learns from be NaN."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        return output * math.nan if torch.is_grad_enabled() else output

    student.network.get_input_embeddings().register_forward_hook(hook)


def documents(count: int, name: str, seed: int = 0) -> list[Document]:
    """Random text of 2 to 40 tokens with prompts of every possible length."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = int(torch.randint(2, 41, (1,), generator=generator))
        tokens = torch.randint(0, 256, (length,), generator=generator).tolist()
        start = int(torch.randint(1, length, (1,), generator=generator))
        made.append(Document(f"{name}-{index}", tuple(tokens), start))
    return made


TRAIN, HELDOUT = documents(16, "train"), documents(4, "heldout", seed=1)


def models(init: str = "zero") -> tuple[Model, Model]:
    """Teacher, and a student with two of its four attentions replaced."""
    teacher, student = tiny.model("llama"), _student(init)
    return teacher, replace(student, network=copy.deepcopy(student.network), tokenizer=teacher.tokenizer)


@cache
def _student(init: str) -> Model:
    return convert(tiny.model("llama"), REPLACED, init=init)


def weights(model: Model) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def store_of(teacher: Model, folder: Path, settings: DistillSettings, processes: Processes = ALONE) -> StoredTeacher:
    """What the teacher says to the documents of this file, in `folder`."""
    assert settings.teacher_store is not None
    return store_teacher(
        teacher,
        [*TRAIN, *HELDOUT],
        settings.teacher_store,
        vocabulary=260,
        folder=folder / "store",
        processes=processes,
    )


def run(student: Model, teacher: Model | StoredTeacher, settings: DistillSettings, **arguments: Any) -> DistillResult:
    """`distill` on the documents of this file."""
    arguments = {"train": TRAIN, "heldout": HELDOUT, **arguments}
    return distill(student, teacher, settings=settings, new_parameters=new_parameters(student, REPLACED), **arguments)


def lasting(result: DistillResult) -> dict[str, Any]:
    """What must be equal however often a run was interrupted: all but the time."""
    return {key: value for key, value in result.to_json().items() if key != "seconds"}


def steps_kept(folder: Path) -> list[int]:
    """Steps of which there is a checkpoint, complete or not."""
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/*/checkpoint-*"))


def _die_at(kind: str, number: int) -> None:
    """Arrange that this process dies at the `number`th time that it reaches a point."""
    count = 0

    def die_when_reached() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(module: Any, name: str) -> None:
        original = getattr(module, name)

        def dying(*arguments: Any, **keywords: Any) -> Any:
            die_when_reached()
            return original(*arguments, **keywords)

        setattr(module, name, dying)

    if kind in ("batch", "own"):
        before(loop, "chunked_sum")
    elif kind == "shard":
        before(write, "save_file")
    elif kind == "unmarked":
        before(checkpoints, "_hashes")
    elif kind == "half-written":
        save = checkpoints.save_file

        def half_saved(tensors: dict[str, Tensor], path: Path) -> None:
            save(tensors, path)
            if count == number - 1:
                os.truncate(path, path.stat().st_size // 2)
            die_when_reached()

        checkpoints.save_file = half_saved
    elif kind == "half-removed":
        remove = shutil.rmtree

        def half_removed(path: Path, *arguments: Any, **keywords: Any) -> None:
            if count == number - 1:
                (Path(path) / "optimizer.pt").unlink()
            die_when_reached()
            remove(path, *arguments, **keywords)

        checkpoints.shutil.rmtree = half_removed
    else:
        raise ValueError(kind)


def _run_until_killed(folder: Path, where: str, stored: bool) -> None:
    kind, _, number = where.partition(":")
    child = os.fork()
    if child == 0:
        if kind != "outside":
            _die_at(kind, int(number))
        teacher, student = models()
        if stored:
            run(student, store_of(teacher, folder, STORED), STORED, folder=folder)
        else:
            run(student, teacher, OWN if kind == "own" else RESUMABLE, folder=folder)
        os._exit(0)
    while kind == "outside" and max(steps_kept(folder), default=0) < int(number):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), f"{where}: died by itself"
        time.sleep(0.002)
    if kind == "outside":
        os.kill(child, signal.SIGKILL)  # while the checkpoint of that step is being written, or a little later
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{where}: survived"


if __name__ == "__main__":
    torch.set_num_threads(1)
    places = sys.argv[2:]
    if stored := places[0] == "--stored":
        places = places[1:]
        read.SHARD_TOKENS = write.SHARD_TOKENS = 60
    for place in places:
        # "outside:4,outside:8" is killed twice, the second time after it has gone on from the first.
        for part in place.split(","):
            _run_until_killed(Path(sys.argv[1]) / place, part, stored)
