"""What test_two_processes launches: distillations in two processes, with what came of them in FOLDER.

With FSDP2, the last of them is a stage of the run FOLDER/run, whose recipe is FOLDER/recipe.yaml.

PYTHONPATH=tests python -m torch.distributed.run --nproc-per-node 2 two_processes_case.py FOLDER
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from distill_case import HELDOUT, REPLACED, TRAIN, lasting, models, run, store_of, weights
from safetensors.torch import save_file
from torch import Tensor

import tiny
from radistill.conversion import convert, new_parameters
from radistill.distillation import loop
from radistill.distillation.distill import finetune
from radistill.distillation.settings import DistillSettings, FinetuneSettings, OnPolicySettings
from radistill.distillation.teacher_store import TeacherStoreSettings, read, write
from radistill.errors import RadistillError
from radistill.files import write_json
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.pipeline.run import run as run_recipe
from radistill.processes import join
from radistill.runs.recipe import load_recipe

# Of five batches, four a step: two for each of two processes.
TWENTY = DistillSettings(
    steps=20,
    tokens_per_batch=110,
    gradient_accumulation=4,
    new_block_learning_rate=1e-2,
    other_learning_rate=1e-3,
    eval_steps=8,
    save_seconds=10_000,
    report_to="none",
)
# Greedy: the processes add floats in another order than one alone, and a sample near a border would turn out otherwise.
OWN = TWENTY.model_copy(update={"steps": 6, "on_policy": OnPolicySettings(share=0.5, max_new_tokens=8, temperature=0)})
TUNING = FinetuneSettings(
    steps=5,
    tokens_per_batch=110,
    gradient_accumulation=4,
    new_block_learning_rate=1e-2,
    other_learning_rate=1e-3,
    report_to="none",
)
STORED = TWENTY.model_copy(update={"steps": 3, "teacher_store": TeacherStoreSettings(top_k=6)})


def tied_models() -> tuple[Model, Model]:
    """Teacher and student, whose input and output embeddings are one weight."""
    teacher = tiny.model("llama-tied")
    return teacher, convert(teacher, REPLACED, init="random")


def _uninterrupted(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
    teacher, student = tied_models()
    for model in (teacher, student):
        model.network.to(dtype)
    of_teacher = weights(teacher)
    result = run(student, teacher, TWENTY.model_copy(update=changes), folder=folder / name)
    assert all(torch.equal(tensor, of_teacher[name]) for name, tensor in weights(teacher).items())
    index = join("cpu").index
    write_json(folder / f"{name}-{index}.json", lasting(result))
    save_file(weights(student), folder / f"{name}-{index}.safetensors")


def _own(folder: Path) -> None:
    """The student writes some batches; where it is split, that is refused."""
    try:
        _uninterrupted(folder, "own", **dict(OWN))
    except RadistillError as error:
        (folder / f"own-{join('cpu').index}.txt").write_text(str(error))


def _finetuned(folder: Path) -> None:
    teacher, student = tied_models()
    result = finetune(student, teacher, TRAIN, HELDOUT, TUNING, new_parameters=new_parameters(student, REPLACED))
    write_json(folder / f"finetuned-{join('cpu').index}.json", lasting(result))


def _interrupted(folder: Path, name: str) -> None:
    """The second process alone is told to stop, in its fifteenth batch; then both go on."""
    original, calls = loop.chunked_sum, []

    def interrupting(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 15 and join("cpu").index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    loop.chunked_sum = interrupting
    teacher, student = tied_models()
    try:
        run(student, teacher, TWENTY, folder=folder / name)
    except KeyboardInterrupt:
        assert [path.name for path in (folder / name).glob("checkpoints/*/*")] == ["checkpoint-8"]
    loop.chunked_sum = original
    _uninterrupted(folder, name)


def _poisoned(folder: Path) -> None:
    """One process meets a loss that is not finite; both must say so, and name the same documents."""
    teacher, student = models("random")
    with torch.no_grad():
        teacher.network.get_input_embeddings().weight[250] = float("nan")
    sound = [document for document in TRAIN if 250 not in document.tokens]
    train = [*sound, Document("poisoned", tuple(range(220, 256)), 3)]
    try:
        run(student, teacher, TWENTY, folder=folder / "poisoned", train=train, heldout=sound)
    except RadistillError as error:
        (folder / f"poisoned-{join('cpu').index}.txt").write_text(str(error))


def _stored(folder: Path) -> None:
    """Both write shards of the teacher's store, and then learn from it alone."""
    read.SHARD_TOKENS = write.SHARD_TOKENS = 60
    teacher, student = tied_models()
    store = store_of(teacher, folder, STORED, join("cpu"))
    result = run(student, store, STORED, folder=folder / "stored")
    write_json(folder / f"stored-{join('cpu').index}.json", lasting(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    _uninterrupted(place, "whole")
    _stored(place)
    _interrupted(place, "interrupted")
    _poisoned(place)
    _own(place)
    _finetuned(place)
    if join("cpu").sharded:  # with DDP, the layers compute as they do in one process
        _uninterrupted(place, "bfloat16", steps=3, precision="bfloat16", gradient_checkpointing=True)
        _uninterrupted(place, "loaded", torch.bfloat16, steps=3, other_learning_rate=0.0)
        run_recipe(load_recipe(place / "recipe.yaml"), place / "run", ["distill"])
