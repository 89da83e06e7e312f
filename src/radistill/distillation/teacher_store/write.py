"""The teacher reads the documents once, and leaves its distributions of their response tokens, shard after shard."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from radistill.console import note, progress
from radistill.distillation.heldout import CHUNK_NUMBERS
from radistill.distillation.losses.top_k import top_k_of
from radistill.distillation.modes import placed
from radistill.distillation.precision import Precision, compute_format, computing
from radistill.distillation.teacher_store.layout import (
    CHECKSUM,
    FORMATS,
    HEADER,
    SHARD_TOKENS,
    checksum,
    response_tokens,
    shard_path,
    shards,
    store_folder,
    tokenizer_hash,
)
from radistill.distillation.teacher_store.read import StoredTeacher, is_whole
from radistill.distillation.teacher_store.settings import TeacherStoreSettings
from radistill.errors import RadistillError
from radistill.files import hash_json, write_json
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.logits import ResponseStates, response_states
from radistill.models.sequences import Document, batches, collate, hash_documents
from radistill.processes import ALONE, Processes
from radistill.texts import human_bytes


def store_teacher(
    teacher: Model,
    documents: Sequence[Document],
    settings: TeacherStoreSettings,
    *,
    vocabulary: int,
    folder: Path,
    precision: Precision | None = None,
    device: str | None = None,
    processes: Processes = ALONE,
) -> StoredTeacher:
    """Write what `settings` keep of the teacher's distributions, or what is missing of it, and open it.

    The store has a folder of its own in `folder`, under a key that is a hash of the teacher's weights, the documents
    and the settings: a store of anything else is not touched. Each shard appears under its name only when it is whole,
    so that a killed call is gone on with at the first one that is missing.

    Log-probabilities are rounded to float16, so by at most 2^-11 of themselves: a probability of 1/2 by 0.02 %, one of
    1e-6 by 0.4 %. The sum of the rest is kept in float32; what is most likely is found before rounding.

    Args:
        teacher: in the mode in which it came, on return.
        documents: for training and for held-out measures; equal ones are read once.
        settings: how much is kept.
        vocabulary: the student's; probabilities are over the entries that both have.
        folder: where stores lie.
        precision: as in training.
        device: where the teacher computes; None is where it is.
        processes: who share the shards; each has the whole teacher, and all must call this together.

    Raises:
        RadistillError: if the teacher's logits are not finite (the message names documents) or nothing can be written.
    """
    vocabulary = min(vocabulary, teacher.anatomy.vocab_size)
    top_k = min(settings.top_k, vocabulary)
    compute = compute_format(precision, teacher.network.dtype)
    parts = shards(documents)
    header = {
        "teacher": teacher.fingerprint,
        "tokenizer": tokenizer_hash(teacher.tokenizer),
        "vocabulary": vocabulary,
        "top_k": top_k,
        "tokens_per_batch": settings.tokens_per_batch,
        "compute": str(compute),
        "formats": {name: str(dtype) for name, dtype in FORMATS.items()},
        "shard_tokens": SHARD_TOKENS,
        "documents": hash_documents(chain(*parts)),
    }
    own = store_folder(folder, hash_json(header))
    missing = processes.decide(
        lambda: [index for index, part in enumerate(parts) if not is_whole(shard_path(own, index), part, top_k)]
    )
    mine = missing[processes.index :: processes.count]
    try:
        own.mkdir(parents=True, exist_ok=True)
        with (
            evaluating(teacher.network),
            torch.no_grad(),
            placed(teacher.network, device if mine else None),
            progress("teacher store", len(parts), "shards", done=len(parts) - len(missing)) as advance,
        ):
            for number, index in enumerate(mine):
                tensors = _read(teacher, parts[index], settings.tokens_per_batch, top_k, vocabulary, compute)
                _write(shard_path(own, index), tensors)
                advance(min(processes.count, len(missing) - number * processes.count))
        processes.wait()
        if processes.is_main:
            write_json(own / HEADER, header)
        processes.wait()
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RadistillError(
            f"{own}: the teacher store cannot be written ({reason}); make room or set distill.teacher_store.folder, "
            "and start again: shards that are there are kept"
        ) from None
    store = StoredTeacher(own, documents)
    note(
        f"teacher store: top {store.top_k} of {vocabulary:,} for {store.tokens:,} response tokens, "
        f"{store.bytes / max(store.tokens, 1):,.0f} bytes each, {human_bytes(store.bytes)} in {own}"
        + ("" if missing else ", written before")
    )
    return store


def _read(
    teacher: Model,
    part: Sequence[Document],
    tokens_per_batch: int,
    k: int,
    vocabulary: int,
    compute: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors of a shard."""
    device = teacher.network.device
    found: dict[Document, dict[str, Tensor]] = {}
    for group in batches(part, tokens_per_batch):
        batch = collate(group, teacher.pad_token_id, device)
        with computing(compute, device):
            kept = _kept(response_states(teacher.network, batch), k, vocabulary)
        if kept["tail"].isnan().any() or kept["log_probabilities"].isnan().any():
            names = ", ".join(document.id for document in group)
            raise RadistillError(
                f"teacher store: the teacher's logits are not finite on the documents {names}; take these out"
            )
        split = {name: tensor.split([response_tokens(document) for document in group]) for name, tensor in kept.items()}
        for row, document in enumerate(group):
            found[document] = {name: pieces[row] for name, pieces in split.items()}
    whole = {name: torch.cat([found[document][name] for document in part]) for name in FORMATS}
    # What is only unlikely must not become impossible by rounding.
    logs, smallest = whole["log_probabilities"], torch.finfo(FORMATS["log_probabilities"]).min
    whole["log_probabilities"] = logs.clamp(min=smallest).masked_fill(logs.isinf(), -torch.inf)
    return {name: tensor.to(FORMATS[name]) for name, tensor in whole.items()}


def _kept(states: ResponseStates, k: int, vocabulary: int) -> dict[str, Tensor]:
    """What is kept of a batch's response tokens, on the CPU; logits are made of a few tokens at a time."""
    chunk = max(1, CHUNK_NUMBERS // vocabulary)
    starts = range(0, len(states.targets), chunk)
    pieces = [top_k_of(states.logits(slice(start, start + chunk), vocabulary), k) for start in starts]
    return {name: torch.cat([getattr(piece, name) for piece in pieces]).cpu() for name in FORMATS}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Save a shard under a name of its own, and give it its name once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, {CHECKSUM: checksum(tensors)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
