"""Prepared data: examples with their tokens, and the files that hold them."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from radistill.data.examples import Example
from radistill.files import read_rows, write_text
from radistill.models.pictures import Images, Picture, Reader
from radistill.models.sequences import Document

SplitName = Literal["train", "calibration", "heldout", "calibration_retrieval", "heldout_retrieval"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "heldout")
RETRIEVAL: tuple[SplitName, ...] = ("calibration_retrieval", "heldout_retrieval")


class _Row(BaseModel):
    """A line of a split, as `Record.to_row` writes it."""

    id: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    response: str | None = None
    response_fields: dict[str, Any] | None = None
    verifier: dict[str, Any] | None
    images: list[dict[str, str]] = []
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
    response_start: int = Field(ge=1)
    finished: bool

    @model_validator(mode="after")
    def _fits_together(self) -> "_Row":
        if (self.messages is None) == (self.text is None):
            raise ValueError("needs either messages or text")
        if self.response_start >= len(self.tokens):
            raise ValueError(f"response_start is {self.response_start}, but there are {len(self.tokens)} tokens")
        return self


@dataclass(frozen=True)
class Record:
    """An example that is ready for the models.

    Attributes:
        example: with its response as text, special tokens left out; a text has none.
        document: the tokens; those of a written response are exactly what the teacher produced.
        finished: False if the teacher's response was cut at `max_new_tokens`.
    """

    example: Example
    document: Document
    finished: bool = True

    def to_row(self) -> dict[str, Any]:
        """The record as JSON: the example's keys, `tokens`, `response_start` and `finished`."""
        tokens = {"tokens": list(self.document.tokens), "response_start": self.document.response_start}
        return self.example.to_row() | tokens | {"finished": self.finished}

    @classmethod
    def from_row(cls, row: dict[str, Any], reader: Reader | None = None) -> "Record":
        """The inverse of `to_row`; without a `reader`, images are read by nobody."""
        example = example_of(row)
        images = Images(example.images, reader) if reader is not None and example.images else None
        return cls(
            example=example,
            document=Document(row["id"], tuple(row["tokens"]), row["response_start"], images),
            finished=row["finished"],
        )


@dataclass(frozen=True)
class DataSplits:
    """The records to train on, to judge layers on and to evaluate on.

    Attributes:
        calibration_retrieval, heldout_retrieval: texts of their own in which a number has to be found again; empty
            where none were asked for. Those to train on are among `train`.
    """

    train: list[Record]
    calibration: list[Record]
    heldout: list[Record]
    calibration_retrieval: list[Record] = field(default_factory=list)
    heldout_retrieval: list[Record] = field(default_factory=list)

    def records(self, split: SplitName) -> list[Record]:
        """The records of one split."""
        found: list[Record] = getattr(self, split)
        return found

    def documents(self, split: SplitName) -> list[Document]:
        """The tokens of one split."""
        return [record.document for record in self.records(split)]

    def save(self, folder: Path) -> None:
        """Write `train.jsonl`, `calibration.jsonl` and `heldout.jsonl`, and those of retrieval, each in one step."""
        for split in (*SPLITS, *RETRIEVAL):
            path, rows = folder / f"{split}.jsonl", [record.to_row() for record in self.records(split)]
            if rows or split in SPLITS:
                write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
            else:
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path | str, reader: Reader | None = None) -> "DataSplits":
        """Read what `save` has written; the `reader` of the model that has written it reads the images.

        Raises:
            RadistillError: if a file is missing, or a line is not a prepared record.
        """
        files = {split: Path(folder) / f"{split}.jsonl" for split in (*SPLITS, *RETRIEVAL)}
        return cls(
            **{split: _load(file, reader) for split, file in files.items() if split not in RETRIEVAL or file.exists()}
        )


def example_of(row: dict[str, Any]) -> Example:
    """The inverse of `Example.to_row`; other keys are ignored."""
    found: dict[str, Any] = {one.name: row.get(one.name) for one in fields(Example)}
    found |= {name: tuple(found[name]) for name in ("messages", "tools") if found[name] is not None}
    images = tuple(Picture.of(one, Path(), f"{row['id']}: images") for one in found["images"] or ())
    return Example(**found | {"images": images})


def _load(path: Path, reader: Reader | None) -> list[Record]:
    way_out = "; without this file, `radistill run` prepares it anew"
    return [Record.from_row(row.model_dump(), reader) for _, row in read_rows(path, _Row, way_out=way_out)]
