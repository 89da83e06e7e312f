"""How results of tasks are kept: the names of their files, and what a row is. Whoever only reads needs no torch."""

from typing import Any

SUMMARY = "tasks.json"

Row = dict[str, Any]
"""One example as it is kept in the task's JSONL: `id`, `key` (the same for the same question), and either `correct` or
`nats` and `bytes`."""


def file_name(task: str) -> str:
    """A task's name as a part of a file's: a colon or slash is none everywhere."""
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in task)
