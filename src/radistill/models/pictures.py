"""Images beside text: which model types read them, and what a network is given of them.

A conversation's tokens hold a place for each part of an image, the image token as often as the processor says; the
network puts what its vision encoder and its connector make of the image there (LLaVA, arXiv 2304.08485). Images are
kept as files or bytes and made into tensors batch by batch, which are a hundred times as large.
"""

import base64
import binascii
import hashlib
import inspect
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from radistill.errors import RadistillError
from radistill.files import hash_json, shortened

MOST_BYTES = 32 * 2**20
"""Of one image file."""
MOST_PIXELS = 2**26
"""Of one image: 67 million, which a photograph does not have, and a file made to exhaust memory may claim."""


@dataclass(frozen=True)
class Seeing:
    """How a model type that reads images names its parts, as paths from the network.

    Attributes:
        text: the language model.
        vision: the vision encoder.
        connector: what turns the encoder's output into the language model's width; it may be a part of `vision`.
        kinds: the argument that tells image tokens (1) from others (0), where the network takes one.
    """

    text: str
    vision: str
    connector: str
    kinds: str = ""

    @property
    def inner(self) -> str:
        """The connector's path from the vision encoder; empty where it is no part of it."""
        path = self.connector.removeprefix(f"{self.vision}.")
        return "" if path == self.connector else path

    def is_vision(self, name: str) -> bool:
        """Whether a parameter of this name is one of the vision encoder."""
        return name.startswith(f"{self.vision}.") and not name.startswith(f"{self.connector}.")


_IDEFICS = Seeing("model.text_model", "model.vision_model", "model.connector")
SEEING: dict[str, Seeing] = {
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_5_vl": Seeing("model.language_model", "model.visual", "model.visual.merger", "mm_token_type_ids"),
    "gemma3": Seeing("model.language_model", "model.vision_tower", "model.multi_modal_projector", "token_type_ids"),
}
"""By model type; images of other types are refused."""

_ADDRESS = re.compile(r"[a-z][a-z0-9]+:/")  # as a path, https:// has one slash less

# Fields of a processor that say nothing of what it does.
_NAMES_OF_CLASSES = {"auto_map", "image_processor_type", "processor_class"}


@dataclass(frozen=True)
class Picture:
    """An image file, or its bytes, known by the SHA-256 of them.

    Attributes:
        name: what messages call it.
        path: where it lies; None where `data` has it.
    """

    name: str
    sha256: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, value: object, folder: Path, where: str) -> "Picture":
        """An image as a row gives it: a path, from `folder`, or `{"bytes": …}` in base64.

        Raises:
            RadistillError: beginning with `where`, if it is missing, too large or no image that can be read.
        """
        if isinstance(value, Mapping) and isinstance(value.get("path"), str):
            value = value["path"]
        if isinstance(value, str) and value:
            if _ADDRESS.match(value):
                raise RadistillError(f"{where}: {value} is an address, and none is fetched; load the file first")
            path = folder / os.path.expanduser(value)
            return cls(value, hashlib.sha256(_checked(_read(path, where), f"{where} ({value})")).hexdigest(), path)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), str):
            try:
                data = base64.b64decode(value["bytes"], validate=True)
            except (binascii.Error, ValueError):
                raise RadistillError(f"{where}: bytes are no base64") from None
            return cls(where, hashlib.sha256(_checked(data, where)).hexdigest(), data=data)
        raise RadistillError(f'{where} must be a path, or {{"bytes": …}} in base64')

    def to_row(self) -> dict[str, str]:
        """What `of` reads."""
        if self.data is not None:
            return {"bytes": base64.b64encode(self.data).decode()}
        assert self.path is not None
        return {"path": str(self.path.absolute())}

    def open(self) -> Any:
        """The image, in RGB, as Pillow has it.

        Raises:
            RadistillError: if the file is gone or has changed.
        """
        data = self.data
        if data is None:
            assert self.path is not None
            data = _read(self.path, self.name)
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise RadistillError(f"{self.path}: has changed since it was first read")
        return _decoded(data)


class Reader:
    """A model's processor: it makes tokens and tensors of images.

    Attributes:
        processor: transformers' own.
        token: the image token, which holds the place of a part of an image.
    """

    def __init__(self, processor: Any, network: PreTrainedModel) -> None:
        """Of the network that will be given what it makes."""
        self.processor = processor
        self.token: int = network.config.image_token_id
        self._kinds = SEEING[network.config.model_type].kinds
        self._arguments = frozenset(inspect.signature(network.forward).parameters)

    @cached_property
    def signature(self) -> str:
        """Hash of all that tokens and tensors depend on: with the same one, two models may share them."""
        made = json.loads(self.processor.image_processor.to_json_string())
        made = {name: value for name, value in made.items() if name not in _NAMES_OF_CLASSES}
        lengths = {name: value for name, value in vars(self.processor).items() if name.startswith("image_seq")}
        return hash_json([made, lengths, self.token, self._kinds])

    def tokens(self, text: str, pictures: Sequence[Picture], where: str) -> list[int]:
        """Tokens of a text in which the chat template has marked the place of each image.

        Raises:
            RadistillError: beginning with `where`, if the text marks another number of places.
        """
        try:
            images = [[picture.open() for picture in pictures]]
            found = self.processor(text=[text], images=images, add_special_tokens=False)
        except ValueError as error:  # a processor counts places and images
            raise RadistillError(f"{where}: the processor refuses its images ({shortened(str(error))})") from None
        tokens: list[int] = list(map(int, found["input_ids"][0]))
        if self.token not in tokens:
            raise RadistillError(f"{where}: the chat template leaves out the images; take one that marks their places")
        if tokens[-1] == self.token:
            raise RadistillError(f"{where}: ends with an image, but a text has to follow it")
        return tokens

    def arguments(self, pictures: Sequence[Sequence[Picture]], input_ids: Tensor) -> dict[str, Tensor]:
        """What the network is given of the images of a batch beside its tokens.

        Args:
            pictures: those of each row that has some, in order.
            input_ids: [batch, time], without image tokens in responses.
        """
        images = [[picture.open() for picture in row] for row in pictures]
        made = self.processor.image_processor(images, return_tensors="pt")
        found = {name: torch.as_tensor(value) for name, value in made.items() if name in self._arguments}
        if self._kinds:
            found[self._kinds] = (input_ids == self.token).long()
        return found


@dataclass(frozen=True)
class Images:
    """The images of one document, and what reads them."""

    pictures: tuple[Picture, ...]
    reader: Reader = field(compare=False, repr=False)

    @property
    def content(self) -> list[str]:
        """What results depend on."""
        return [self.reader.signature, *(picture.sha256 for picture in self.pictures)]


def _read(path: Path, where: str) -> bytes:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a device may have no end, and a pipe is read but once
            raise RadistillError(f"{where}: {path} is no file")
        if about.st_size > MOST_BYTES:
            raise RadistillError(
                f"{where}: {path} has {about.st_size / 2**20:.0f} MiB, more than the {MOST_BYTES // 2**20} of an image "
                "that is read; make it smaller"
            )
        return path.read_bytes()
    except OSError as error:
        raise RadistillError(f"{where}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:  # a zero byte
        raise RadistillError(f"{where}: {str(path)!a} is no path ({error})") from None


def _checked(data: bytes, where: str) -> bytes:
    """`data`, if it is an image all of which can be read."""
    if len(data) > MOST_BYTES:
        raise RadistillError(f"{where}: has more than {MOST_BYTES // 2**20} MiB; make it smaller")
    try:
        _decoded(data)
    except RadistillError as error:
        raise RadistillError(f"{where}: {error}") from None
    except Exception as error:  # each format has its own ways to be broken
        known = type(error).__name__ != "UnidentifiedImageError"
        reason = shortened(str(error)) if known else "of no known format" if data else "it is empty"
        raise RadistillError(f"{where}: is no image that can be read ({reason})") from None
    return data


def _decoded(data: bytes) -> Any:
    """The image in RGB, of several ones the first, and turned as its EXIF says: as transformers reads files."""
    pillow, operations = _pillow()
    with pillow.open(BytesIO(data)) as image:
        if (pixels := image.width * image.height) > MOST_PIXELS:
            raise RadistillError(f"has {pixels:,} pixels, more than {MOST_PIXELS:,}; make it smaller")
        seen = operations.exif_transpose(image)
    if seen.mode == "F":
        raise RadistillError("has pixels of floating point, and what is white is not said; save it with 8 bits")
    if seen.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255, where almost all is white
        seen = pillow.fromarray((np.asarray(seen).clip(0, 2**16 - 1) // 2**8).astype(np.uint8))
    if "transparency" in seen.info:
        seen = seen.convert("RGBA")  # Pillow warns otherwise
    return seen.convert("RGB")


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise RadistillError("images need Pillow: pip install 'radistill[images]'") from None
    return Image, ImageOps
