"""The teacher reads the documents once, and leaves its distributions of their response tokens, shard after shard."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from radistill.console import note, progress
from radistill.distillation.losses.top_k import top_k_of
from radistill.distillation.modes import Precision, compute_format, computing, placed
from radistill.distillation.packing import packing
from radistill.distillation.teacher_store.read import (
    CHECKSUM,
    FORMATS,
    HEADER,
    SHARD_TOKENS,
    StoredTeacher,
    checksum,
    is_whole,
    shard_path,
    shards,
    store_folder,
    tokenizer_hash,
)
from radistill.distillation.teacher_store.settings import TeacherStoreSettings
from radistill.errors import RadistillError
from radistill.files import atomic_file, hash_json, write_json
from radistill.models.generation import evaluating
from radistill.models.loading import Model
from radistill.models.logits import ResponseStates, chunks, response_states
from radistill.models.sequences import Document, batches, collate, hash_documents
from radistill.models.server.served import Server
from radistill.models.server.vllm import opened
from radistill.processes import ALONE, Processes
from radistill.texts import human_bytes

IMPOSSIBLE = -9999.0
"""What vLLM writes for a log-probability of -inf, which JSON does not have."""

LEAST_REST = 2.0**-24
"""Mass of the tokens that are not told, at least: less is lost in the rounding of those that are."""


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
        teacher: in the mode in which it came, on return. It needs no weights where `settings` name a server.
        documents: for training and for held-out measures; equal ones are read once.
        settings: how much is kept.
        vocabulary: the student's; probabilities are over the entries that both have.
        folder: where stores lie.
        precision: as in training.
        device: where the teacher computes; None is where it is.
        processes: who share the shards; each has the whole teacher, and all must call this together.

    Raises:
        RadistillError: if the teacher's logits are not finite (the message names documents), nothing can be written, or
            a server does not serve this teacher or hands out no such log-probabilities.
    """
    vocabulary = min(vocabulary, teacher.anatomy.vocab_size)
    top_k = min(settings.top_k, vocabulary)
    compute = compute_format(precision, teacher.network.dtype)
    opening = ExitStack()
    server = opening.enter_context(opened(settings.server, teacher))  # which starts nothing yet
    read = partial(_read, teacher, tokens_per_batch=settings.tokens_per_batch, compute=compute)
    if server is not None:
        server.make_room(max(len(document.tokens) for document in documents) + 1)
        read = partial(read_served, server)
    parts = shards(documents)
    header = {
        "teacher": teacher.fingerprint if server is None else server.identity,
        "tokenizer": tokenizer_hash(teacher.tokenizer),
        "vocabulary": vocabulary,
        "top_k": top_k,
        "tokens_per_batch": settings.tokens_per_batch,
        "compute": str(compute) if server is None else "server",
        "formats": {name: str(dtype) for name, dtype in FORMATS.items()},
        "shard_tokens": SHARD_TOKENS,
        "documents": hash_documents(chain(*parts)),
    }
    own = store_folder(folder, hash_json(header))
    missing = processes.decide(
        lambda: [index for index, part in enumerate(parts) if not is_whole(shard_path(own, index), part, top_k)]
    )

    def write(index: int) -> None:
        tensors = _rounded(read(parts[index], k=top_k, vocabulary=vocabulary))
        with atomic_file(shard_path(own, index)) as temporary:
            save_file(tensors, temporary, {CHECKSUM: checksum(tensors)})

    try:
        own.mkdir(parents=True, exist_ok=True)
        with (
            opening,
            evaluating(teacher.network),
            torch.no_grad(),
            placed(teacher.network, device if missing and server is None else None),
            packing(teacher, "teacher store: the teacher", compute, wanted=bool(missing) and server is None),
            progress("teacher store", len(parts), "shards", done=len(parts) - len(missing)) as advance,
        ):
            work = partial(Processes.share, units=missing, compute=write, told=lambda done: advance(len(done)))
            if server is None:
                work(processes)
            else:  # one process has enough of its requests under way
                processes.decide(partial(work, ALONE))
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
    *,
    tokens_per_batch: int,
    compute: torch.dtype | None,
    k: int,
    vocabulary: int,
) -> dict[str, Tensor]:
    """The tensors of a shard, before rounding."""
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
        split = {name: tensor.split([document.response_tokens for document in group]) for name, tensor in kept.items()}
        for row, document in enumerate(group):
            found[document] = {name: pieces[row] for name, pieces in split.items()}
    return {name: torch.cat([found[document][name] for document in part]) for name in FORMATS}


def _rounded(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a shard in the formats of its file."""
    # What is only unlikely must not become impossible by rounding.
    logs, smallest = whole["log_probabilities"], torch.finfo(FORMATS["log_probabilities"]).min
    whole["log_probabilities"] = logs.clamp(min=smallest).masked_fill(logs.isinf(), -torch.inf)
    return {name: tensor.to(FORMATS[name]) for name, tensor in whole.items()}


def _kept(states: ResponseStates, k: int, vocabulary: int) -> dict[str, Tensor]:
    """What is kept of a batch's response tokens, on the CPU; logits are made of a few tokens at a time."""
    pieces = [top_k_of(states.logits(rows, vocabulary), k) for rows in chunks(len(states.targets), vocabulary)]
    return {name: torch.cat([getattr(piece, name) for piece in pieces]).cpu() for name in FORMATS}


# ---- the same from a server that tells the log-probabilities of a prompt's tokens, as vLLM does ----


def read_served(server: Server, part: Sequence[Document], *, k: int, vocabulary: int) -> dict[str, Tensor]:
    """The tensors of a shard, as the server tells them: the `k` most likely tokens below `vocabulary`, and the rest.

    The server's probabilities are over its whole embedding. So where that has more rows than `vocabulary`, which are
    padding, their mass is counted in the rest, and not left out as when the teacher is read here.

    Raises:
        RadistillError: if the server tells no log-probabilities, or fewer than `k` for a token.
    """
    found = dict(server.at_once(partial(_distributions, server, k=k, vocabulary=vocabulary), part))
    return {name: torch.cat([found[document][name] for document in part]) for name in FORMATS}


def _distributions(server: Server, document: Document, *, k: int, vocabulary: int) -> dict[str, Tensor]:
    said = server.complete(document.tokens, {"max_tokens": 1, "temperature": 0, "prompt_logprobs": k})
    told = (said.get("prompt_logprobs") or [])[document.response_start :]
    if len(told) != document.response_tokens:
        raise server.error("tells no prompt_logprobs, which distill.teacher_store needs; vLLM does")
    rows = [_most_likely(place, vocabulary)[:k] for place in told]
    if any(len(row) < k for row in rows):
        raise server.error(f"tells fewer than {k} tokens that both models have; lower distill.teacher_store.top_k")
    logs = torch.tensor([[log for log, _ in row] for row in rows], dtype=torch.float64)
    ids = torch.tensor([[token for _, token in row] for row in rows])
    rest = (1 - logs.exp().sum(dim=1)).clamp(min=LEAST_REST).log()
    if k == vocabulary:
        rest = rest.fill_(-math.inf)
    return {"ids": ids, "log_probabilities": logs, "tail": rest, "best": ids[:, 0]}


def _most_likely(place: Mapping[str, Mapping[str, Any]], vocabulary: int) -> list[tuple[float, int]]:
    """Log-probabilities with their tokens, the largest first, and of equal ones the first token."""
    told = ((float(entry["logprob"]), int(token)) for token, entry in place.items())
    known = [(-math.inf if log <= IMPOSSIBLE else log, token) for log, token in told if token < vocabulary]
    return sorted(known, key=lambda one: (-one[0], one[1]))
