"""Prepared data: examples with their tokens, and the files that hold them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from radistill.data.examples import Example
from radistill.files import read_rows, write_text
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
    def from_row(cls, row: dict[str, Any]) -> "Record":
        """The inverse of `to_row`."""
        return cls(
            example=example_of(row),
            document=Document(row["id"], tuple(row["tokens"]), row["response_start"]),
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
            if split in RETRIEVAL and not self.records(split):
                (folder / f"{split}.jsonl").unlink(missing_ok=True)
                continue
            rows = (json.dumps(record.to_row(), ensure_ascii=False) for record in self.records(split))
            write_text(folder / f"{split}.jsonl", "".join(f"{row}\n" for row in rows))

    @classmethod
    def load(cls, folder: Path | str) -> "DataSplits":
        """Read what `save` has written.

        Raises:
            RadistillError: if a file is missing, or a line is not a prepared record.
        """
        files = {split: Path(folder) / f"{split}.jsonl" for split in (*SPLITS, *RETRIEVAL)}
        return cls(**{split: _load(file) for split, file in files.items() if split not in RETRIEVAL or file.exists()})


def example_of(row: dict[str, Any]) -> Example:
    """The inverse of `Example.to_row`; other keys are ignored."""
    messages, tools = row.get("messages"), row.get("tools")
    return Example(
        id=row["id"],
        messages=None if messages is None else tuple(messages),
        text=row.get("text"),
        tools=None if tools is None else tuple(tools),
        response=row.get("response"),
        response_fields=row.get("response_fields"),
        verifier=row["verifier"],
    )


def _load(path: Path) -> list[Record]:
    way_out = "; without this file, `radistill run` prepares it anew"
    return [Record.from_row(row.model_dump()) for _, row in read_rows(path, _Row, way_out=way_out)]
