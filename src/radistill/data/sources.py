"""The sources by kind, and how their examples are shared out among the splits."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radistill.data import hub, jsonl, reasoning_gym
from radistill.data.examples import Example, Rows
from radistill.data.settings import DataSettings, HubData, JsonlData, ReasoningGymData
from radistill.errors import RadistillError

_FEWEST = 3

SOURCES: dict[str, Callable[[Any, int], Rows]] = {
    "jsonl": jsonl.read,
    "datasets": hub.read,
    "reasoning-gym": reasoning_gym.read,
}


def settings_of(source: str, **fields: Any) -> DataSettings:
    """The settings of a source in one word; `fields` are the further ones.

    Args:
        source: `reasoning-gym:TASK[,TASK...]`, the path of a `.jsonl` file, or what the `datasets` library loads: a
            folder, or a name on the hub.

    Raises:
        RadistillError: for anything else.
    """
    kind, _, tasks = source.partition(":")
    if kind == "reasoning-gym" and tasks:
        return ReasoningGymData(tasks={task.strip(): {} for task in tasks.split(",")}, **fields)
    if source.endswith(".jsonl"):
        return JsonlData(path=Path(source), **fields)
    if Path(source).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return HubData(id=source, **fields)
    raise RadistillError(
        f"{source!r} is not a source: the path of a .jsonl file, a folder, the name of a data set on the hub "
        "(ORGANISATION/NAME), or reasoning-gym:TASK"
    )


def shares(settings: DataSettings, seed: int) -> dict[str, int]:
    """How many examples each split gets if nobody says it: an eighth of the prompts is held out, up to the defaults.

    Raises:
        RadistillError: on whatever is wrong with the data, or if it has fewer than three prompts.
    """
    most = settings.train + settings.heldout
    prompts: set[str] = set()
    for example in SOURCES[settings.kind](settings, seed).examples:
        prompts.add(example.prompt)
        if len(prompts) == most:
            break
    if len(prompts) < _FEWEST:
        raise RadistillError(f"data: has {len(prompts)} different prompts; a run needs at least {_FEWEST}")
    heldout = min(settings.heldout, max(1, len(prompts) // 8))
    train = min(settings.train, len(prompts) - heldout)
    return {"train": train, "calibration": min(settings.calibration, train), "heldout": heldout}


@dataclass(frozen=True)
class Draw:
    """The examples of each split, before any tokenizer.

    Attributes:
        train, calibration, heldout: the splits; `calibration` is empty if it is to be the beginning of `train`.
    """

    train: list[Example]
    calibration: list[Example]
    heldout: list[Example]


def draw(settings: DataSettings, seed: int, without: Collection[str] = ()) -> Draw:
    """Read the examples of all splits. No model is needed, so a recipe's data can be checked before weights are loaded.

    Held-out examples are drawn first: they stay the same when more training data is asked for. A prompt that is in one
    split is in no other, nor is one of `without`, and the same prompt and response are taken only once.

    Raises:
        RadistillError: on whatever is wrong with the data, or if there is less of it than asked for.
    """
    if settings.calibration_from == "train" and settings.calibration > settings.train:
        raise RadistillError(
            f"data.calibration: {settings.calibration} asked for, but data.train has only {settings.train}; "
            "ask for fewer or set data.calibration_from to own"
        )
    rows = SOURCES[settings.kind](settings, seed)
    stream = iter(rows.examples)
    taken = set(without)
    heldout_stream, origin = (stream, rows.origin) if rows.heldout is None else (iter(rows.heldout), "its own rows")
    heldout = take(heldout_stream, "data.heldout", settings.heldout, taken, origin)
    if settings.calibration_from == "train":
        return Draw(take(stream, "data.train", settings.train, taken, rows.origin), [], heldout)
    calibration = take(stream, "data.calibration", settings.calibration, taken, rows.origin)
    train = take(stream, "data.train", settings.train, taken, rows.origin)
    return Draw(train, calibration, heldout)


def take(stream: Iterator[Example], field: str, count: int, taken: set[str], origin: str) -> list[Example]:
    """Take `count` examples whose prompts are not in `taken`, and enter them there.

    Raises:
        RadistillError: naming `field` and `origin`, if the stream ends before.
    """
    chosen: list[Example] = []
    seen: set[tuple[str, str]] = set()
    repeated = 0
    while len(chosen) < count:
        example = next(stream, None)
        if example is None:
            gone = {"already in other splits": len(taken), "left out because their prompt was taken": repeated}
            why = "; ".join([origin, *(f"{number} {where}" for where, number in gone.items() if number)])
            raise RadistillError(
                f"{field}: {count} asked for, {len(chosen)} there ({why}); ask for fewer or give more data"
            )
        if example.prompt in taken or example.content in seen:
            repeated += 1
            continue
        seen.add(example.content)
        chosen.append(example)
    taken.update(example.prompt for example in chosen)
    return chosen
