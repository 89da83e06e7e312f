"""Source `jsonl`: one JSON object a line, see docs/data.md for the keys."""

import json
import random
from pathlib import Path

from radistill.data.examples import Example, Rows, example_from_row
from radistill.data.settings import JsonlData
from radistill.errors import RadistillError


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
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise RadistillError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RadistillError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise RadistillError(f"{path}: cannot be read ({error.strerror})") from None
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RadistillError(f"{where}: not valid JSON ({error})") from None
        examples.append(example_from_row(row, f"{path.stem}-{number}", where))
    if not examples:
        raise RadistillError(f"{path}: has no rows")
    return examples
