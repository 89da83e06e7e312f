"""Distributions of a store: how they lie on disk, and reading them, a few documents at a time.

`<folder>/<first letters of the key>/` holds shards, each with the response tokens of consecutive documents and a
checksum of them, and `store.json`, which follows when all of them are there. The key is a hash of everything that the
numbers depend on.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from radistill.distillation.losses.top_k import TopK
from radistill.errors import RadistillError
from radistill.files import hash_json, read_json
from radistill.models.checkpoint import shapes_in
from radistill.models.sequences import Document, hash_documents

HEADER = "store.json"
CHECKSUM = "crc32"

SHARD_TOKENS = 2**15
"""Tokens of the documents of one shard, prompts included, at least: what a kill can cost the teacher."""

FORMATS = {
    "ids": torch.int32,
    "log_probabilities": torch.float16,
    "tail": torch.float32,
    "best": torch.int32,
}
"""Number formats of the tensors of a shard; those of `TopK`, response token after response token."""

_IN_MEMORY = {"ids": torch.long, "log_probabilities": torch.float32, "tail": torch.float32, "best": torch.long}


def shards(documents: Sequence[Document]) -> list[list[Document]]:
    """The documents of each shard, equal ones once; the order is that of the documents."""
    made: list[list[Document]] = []
    room = 0
    for document in {document.content: document for document in documents}.values():
        if room <= 0:
            made.append([])
            room = SHARD_TOKENS
        made[-1].append(document)
        room -= len(document.tokens)
    return made


def store_folder(folder: Path, key: str) -> Path:
    """Where in `folder` the store with a key lies."""
    return folder / key[:16]


def shard_path(folder: Path, index: int) -> Path:
    """File of a shard."""
    return folder / f"shard-{index:05d}.safetensors"


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the tensors of a shard, which its file holds beside them."""
    found = 0
    for name in FORMATS:
        found = crc32(tensors[name].numpy().data, found)
    return f"{found:08x}"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of which token has which id."""
    return hash_json(tokenizer.get_vocab())


def bytes_per_token(top_k: int) -> int:
    """Bytes of one response token's distribution."""
    sizes = {name: dtype.itemsize for name, dtype in FORMATS.items()}
    return top_k * (sizes["ids"] + sizes["log_probabilities"]) + sizes["tail"] + sizes["best"]


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
                row += document.response_tokens
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
                        parts.append(opened[shard].get_slice(name)[row : row + document.response_tokens])
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
    rows = sum(document.response_tokens for document in part)
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
