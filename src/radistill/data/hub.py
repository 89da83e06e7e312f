"""Source `datasets`: whatever the `datasets` library loads, from the hub or from a folder."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radistill.data.examples import Example, Rows, example_from_row
from radistill.data.settings import HubData
from radistill.errors import RadistillError
from radistill.models.checkpoint import one_line


def read(settings: HubData, seed: int) -> Rows:
    """Load the splits and read their rows shuffled, only as many as are asked for."""
    heldout = None if settings.heldout_split is None else _examples(settings, settings.heldout_split, seed)
    return Rows(f"{settings.id} ({settings.split})", _examples(settings, settings.split, seed), heldout)


def _examples(settings: HubData, split: str, seed: int) -> Iterator[Example]:
    table = _load(settings, split)
    missing = sorted(set(settings.columns.values()) - set(table.column_names))
    if missing:
        raise RadistillError(
            f"data.columns: {settings.id} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}"
        )
    table = table.with_format(None)  # plain Python objects
    order = list(range(len(table)))
    random.Random(seed).shuffle(order)
    for number in order:
        row = table[number]
        if settings.columns:
            row = {key: row[column] for key, column in settings.columns.items()}
        row = {key: _without_nulls(value) if key in ("messages", "tools") else value for key, value in row.items()}
        yield example_from_row(row, f"{split}-{number}", f"{settings.id}, {split}, row {number}")


def _without_nulls(value: Any) -> Any:
    """A column gives each of its objects the keys of all; those that an object never had are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _load(settings: HubData, split: str) -> Any:
    import datasets

    folder = Path(settings.id).expanduser()
    if settings.id.startswith((".", "/", "~")) and not folder.is_dir():
        raise RadistillError(f"data.id: {settings.id} is not a folder")
    try:
        if folder.is_dir() and any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.Dataset):
                return saved
            if split not in saved:
                raise RadistillError(f"data.split: {settings.id} has no split {split!r}; it has {', '.join(saved)}")
            return saved[split]
        if folder.is_dir() and any(mark in str(folder.resolve()) for mark in ("*", "?", "[", "::")):
            # The library reads them as patterns, and then finds no file, or those of another folder.
            raise RadistillError(f"data.id: {settings.id}: rename the folder or a parent, to be without * ? [ and ::")
        return datasets.load_dataset(str(folder) if folder.is_dir() else settings.id, settings.config, split=split)
    except RadistillError:
        raise
    except Exception as error:  # the library raises many kinds, from network errors to pyarrow's
        raise RadistillError(f"data.id: {settings.id} (split {split}) cannot be loaded: {one_line(error)}") from error
