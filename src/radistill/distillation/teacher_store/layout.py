"""How a store lies on disk.

`<folder>/<first letters of the key>/` holds shards, each with the response tokens of consecutive documents and a
checksum of them, and `store.json`, which follows when all of them are there. The key is a hash of everything that the
numbers depend on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from radistill.files import hash_json
from radistill.models.sequences import Document

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


def response_tokens(document: Document) -> int:
    """How many of a document's tokens have a distribution in the store."""
    return len(document.tokens) - document.response_start


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
