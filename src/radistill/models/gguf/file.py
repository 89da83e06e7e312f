"""The bytes of a GGUF file, or of all the parts of a split one: what its metadata say, and where its tensors lie."""

import mmap
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from radistill.errors import RadistillError
from radistill.models.checkpoint import one_line

# Types of values by their number in the file, as `struct` names them. Strings are type 8, arrays type 9.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, the first byte there, its shape in torch's order, and how it is stored."""

    path: Path
    start: int
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    def read(self, name: str) -> Tensor:
        """The tensor, de-quantised to float32.

        Raises:
            RadistillError: naming the tensor and its type, if the gguf library cannot de-quantise it.
        """
        rows = gguf.quant_shape_to_byte_shape(self.shape, self.kind)
        blocks = np.memmap(self.path, np.uint8, "r", self.start, tuple(rows))
        try:
            numbers = gguf.dequantize(blocks, self.kind)
        except (NotImplementedError, KeyError):
            raise RadistillError(
                f"{self.path}: {name} is stored as {self.kind.name}, which the gguf library cannot de-quantise; take "
                "the file in another quantisation"
            ) from None
        return torch.from_numpy(np.array(numbers, dtype=np.float32).reshape(self.shape))


@dataclass(frozen=True)
class Contents:
    """What a GGUF file holds.

    Attributes:
        parts: the file, or all files of a split one in their order.
        metadata: value by key. An array is a list.
        tensors: by llama.cpp's names.
    """

    parts: list[Path]
    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def read_contents(path: Path) -> Contents:
    """The metadata and the table of tensors of a GGUF file; of all its parts, if it is split.

    Raises:
        RadistillError: if the file is no GGUF file, is damaged, or a part of it is missing.
    """
    metadata, tensors = _read(path)
    count = metadata.get("split.count", 1)
    if count == 1:
        return Contents([path], metadata, tensors)
    name = _PART.fullmatch(path.name)
    if name is None or int(name[2]) != count:
        raise RadistillError(
            f"{path}: one of the {count} parts of a split model (split.count); its parts are found by llama.cpp's "
            f"names, such as model-00001-of-{count:05}.gguf, so give it back its name"
        )
    parts = [path.with_name(f"{name[1]}-{number + 1:05}-of-{name[2]}.gguf") for number in range(count)]
    metadata, tensors = {}, {}
    for number, part in enumerate(parts):
        if not part.is_file():
            raise RadistillError(f"{path}: one of the {count} parts of a split model, of which {part} is missing")
        said, held = _read(part)
        if (said.get("split.no"), said.get("split.count")) != (number, count) or tensors.keys() & held.keys():
            raise RadistillError(f"{part}: not part {number + 1} of {count} of this model (split.no, split.count)")
        first = metadata or said
        if further := [key for key in said if not key.startswith("split.") and said[key] != first.get(key)]:
            raise RadistillError(f"{part}: {further[0]} is not what the first part says, which is the one that counts")
        metadata = first
        tensors |= held
    if metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise RadistillError(f"{path}: its parts hold {len(tensors)} tensors, which split.tensors.count denies")
    return Contents(parts, metadata, tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    try:
        with path.open("rb") as handle:
            magic = handle.read(4)
            if magic != b"GGUF":
                raise RadistillError(f"{path}: not a GGUF file (it begins with {magic!r})")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Cursor(path, mapped).file()
    except OSError as error:
        raise RadistillError(f"{path}: {error.strerror}") from None
    except (struct.error, ValueError, OverflowError, KeyError, MemoryError) as error:  # what broken bytes lead to
        raise RadistillError(f"{path}: this GGUF file is damaged or cut off ({one_line(error)})") from None


class _Cursor:
    """Reads one value after the other, from the start of a file."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self._path, self._mapped, self._at = path, mapped, 4

    def file(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        (version,) = self._take("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}; versions {_VERSIONS} in little-endian order are read")
        tensor_count, value_count = self._take("QQ")
        metadata = {}
        for _ in range(value_count):
            key = self._string()
            if key in metadata:
                raise ValueError(f"{key} is there twice")
            metadata[key] = self._value(*self._take("I"))
        table = [self._entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        start = -(-self._at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in table:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            if start + offset + prod(shape) // block * size > len(self._mapped):
                raise ValueError(f"{name} reaches beyond the end of the file")
            if name in tensors:
                raise ValueError(f"{name} is there twice")
            tensors[name] = Stored(self._path, start + offset, shape, kind)
        return metadata, tensors

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._mapped, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        text = self._mapped[self._at : self._at + length]
        if len(text) < length:
            raise ValueError("a string reaches beyond the end of the file")
        self._at += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_NUMBERS[kind])[0]
        of, count = self._take("IQ")
        if of in _NUMBERS:
            return list(self._take(f"{count}{_NUMBERS[of]}"))
        return [self._value(of) for _ in range(count)]

    def _entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        (dimensions,) = self._take("I")
        shape = tuple(reversed(self._take(f"{dimensions}Q")))
        kind, offset = self._take("IQ")
        return name, shape, GGMLQuantizationType(kind), offset
