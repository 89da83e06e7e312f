"""Distributions of a store, a few documents at a time."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from radistill.distillation.losses.top_k import TopK
from radistill.distillation.teacher_store.layout import (
    CHECKSUM,
    FORMATS,
    HEADER,
    bytes_per_token,
    checksum,
    response_tokens,
    shard_path,
    shards,
    store_folder,
)
from radistill.errors import RadistillError
from radistill.files import hash_json, read_json
from radistill.models.checkpoint import shapes_in
from radistill.models.sequences import Document, hash_documents

_IN_MEMORY = {"ids": torch.long, "log_probabilities": torch.float32, "tail": torch.float32, "best": torch.long}


class StoredTeacher:
    """A teacher's distributions of response tokens, on disk; what is asked for is read, and nothing else."""

    def __init__(self, folder: Path, documents: Sequence[Document]) -> None:
        """Open the store in `folder`, which `store_teacher` has finished.

        Args:
            folder: that of one store, where its `store.json` is.
            documents: those that it was written of, in the same order.

        Raises:
            RadistillError: if it is not complete, or was written of other documents.
        """
        self.folder = folder
        header: dict[str, Any] = read_json(folder / HEADER, dict)
        self.key = hash_json(header)
        if store_folder(folder.parent, self.key) != folder:
            raise RadistillError(f"{folder / HEADER}: damaged; remove it to have it written again")
        parts = shards(documents)
        if header["documents"] != hash_documents(chain(*parts)):
            raise RadistillError(f"{folder}: the teacher store is of other documents; remove it to write it anew")
        for index, part in enumerate(parts):
            if not is_whole(path := shard_path(folder, index), part, header["top_k"]):
                raise RadistillError(
                    f"{path}: missing or damaged; remove it and {HEADER} beside it to have it written again"
                )
        self.vocabulary: int = header["vocabulary"]
        self.top_k: int = header["top_k"]
        self.tokenizer: str = header["tokenizer"]
        self._places: dict[tuple[tuple[int, ...], int], tuple[int, int]] = {}  # shard and first row in it
        self.tokens = 0
        for index, part in enumerate(parts):
            row = 0
            for document in part:
                self._places[document.content] = (index, row)
                row += response_tokens(document)
            self.tokens += row

    @property
    def bytes(self) -> int:
        """Room of the distributions on disk."""
        return self.tokens * bytes_per_token(self.top_k)

    def of(self, documents: Sequence[Document]) -> TopK:
        """Distributions of the documents' response tokens, document after document, as in a batch of them.

        Raises:
            RadistillError: if a shard is damaged.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in FORMATS}
        with ExitStack() as stack:
            opened: dict[int, Any] = {}
            for document in documents:
                shard, row = self._places[document.content]
                path = shard_path(self.folder, shard)
                try:
                    if shard not in opened:
                        opened[shard] = stack.enter_context(safe_open(path, framework="pt"))
                    for name, parts in found.items():
                        parts.append(opened[shard].get_slice(name)[row : row + response_tokens(document)])
                except (OSError, SafetensorError) as error:
                    raise RadistillError(
                        f"{path}: cannot be read ({error}); remove it and {HEADER} beside it to have it written again"
                    ) from None
        # First the formats: autocast on a CPU joins no float16.
        tensors = {name: torch.cat([part.to(_IN_MEMORY[name]) for part in parts]) for name, parts in found.items()}
        tokens = torch.cat([tensors["ids"].flatten(), tensors["best"]])
        logs = torch.cat([tensors["log_probabilities"].flatten(), tensors["tail"]])
        # A sum of probabilities may be a little above 1 by rounding.
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.vocabulary or not (logs < 0.01).all()):
            raise RadistillError(f"{self.folder}: damaged; remove it to have it written again")
        return TopK(**tensors, vocabulary=self.vocabulary)


def is_whole(path: Path, part: Sequence[Document], top_k: int) -> bool:
    """Whether the shard of some documents is there, as it was written."""
    rows = sum(map(response_tokens, part))
    wanted = {name: [rows, *([top_k] if name in ("ids", "log_probabilities") else [])] for name in FORMATS}
    try:
        if shapes_in(path) != wanted:
            return False
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in FORMATS}
            said = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError):
        return False
    return all(tensors[name].dtype == of for name, of in FORMATS.items()) and said == checksum(tensors)
