"""Source `jsonl`: one JSON object a line, see docs/how-to/data.md for the keys."""

import random
from pathlib import Path

from radistill.data.examples import Example, Rows, example_from_row
from radistill.data.settings import JsonlData
from radistill.errors import RadistillError
from radistill.files import read_rows


def read(settings: JsonlData, seed: int) -> Rows:
    """Read the whole file, so that a broken row is reported before any work, and shuffle its rows."""
    heldout = None if settings.heldout_path is None else _shuffled(settings.heldout_path, seed)
    return Rows(str(settings.path), _shuffled(settings.path, seed), heldout)


def _shuffled(path: Path, seed: int) -> list[Example]:
    examples = read_examples(path)
    random.Random(seed).shuffle(examples)
    return examples


def read_examples(path: Path) -> list[Example]:
    """All examples of a file in its order; empty lines are skipped.

    Raises:
        RadistillError: if the file is missing, is not UTF-8 or has no rows, or a line is not JSON or lacks the keys.
    """
    examples = [
        example_from_row(row, f"{path.stem}-{number}", f"{path}, line {number}", path.parent)
        for number, row in read_rows(path)
    ]
    if not examples:
        raise RadistillError(f"{path}: has no rows")
    return examples
