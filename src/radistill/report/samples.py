"""What the models wrote, prepared for reading side by side. The text is never trusted: the template escapes it."""

import re
from dataclasses import dataclass
from typing import Any

from radistill.report.model_results import model_name
from radistill.runs.contents import records
from radistill.runs.folder import MAIN
from radistill.texts import readable

MOST_SAMPLES = 20
MOST_CHARACTERS = 8_000

# A model that has nothing left to say writes pages of nothing; what it did is easier seen in words.
_NOTHING = re.compile(r"\n{5,}|[ \t]{20,}|(?:[ \t]*\n){9,}")
_ROLES = {"assistant", "model", "system", "user"}


@dataclass(frozen=True)
class Answer:
    """One model's response: what it shares with the base's from the first character on, and the rest."""

    key: str
    name: str
    shared: str
    rest: str
    remark: str


@dataclass(frozen=True)
class Sample:
    prompt: str
    first_line: str
    answers: tuple[Answer, ...]


def samples_of(evaluation: dict[str, Any], kind: str) -> tuple[list[Sample], int]:
    """At most `MOST_SAMPLES` samples, and how many there are in all."""
    rows = records(evaluation.get("samples"))
    return [sample_of(row, kind) for row in rows[:MOST_SAMPLES]], len(rows)


def sample_of(row: dict[str, Any], kind: str = MAIN) -> Sample:
    """A row of `prompt` and, by the key of its model, each answer."""
    prompt = readable(row.get("prompt", ""))
    texts = {key: readable(text) for key, text in row.items() if key != "prompt" and isinstance(text, str)}
    base = texts.get("base")
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    return Sample(
        prompt=_cut(prompt)[0],
        first_line=_ellipsis(next((line for line in reversed(lines) if line not in _ROLES), "(empty prompt)")),
        answers=tuple(
            _answer(key, model_name(key, kind), text, base if key != "base" else None) for key, text in texts.items()
        ),
    )


def _answer(key: str, name: str, text: str, base: str | None) -> Answer:
    shared = _common(text, base) if base else 0
    if not text:
        remark = "empty"
    elif base is None:
        remark = f"{len(text):,} characters"
    elif not text.strip():
        remark = "nothing but white space"
    elif text == base:
        remark = "the same as the base"
    elif shared == 0:
        remark = "departs from the base at once"
    else:
        remark = f"departs from the base after {shared:,} of {len(text):,} characters"
    shown, left = _cut(text)
    if left:
        remark += f"; the first {len(shown):,} are shown"
    return Answer(key, name, _told(shown[:shared]), _told(shown[shared:]), remark)


def _told(text: str) -> str:
    """The text with long runs of white space told, not shown."""
    return _NOTHING.sub(_in_words, text)


def _in_words(run: re.Match[str]) -> str:
    breaks = run[0].count("\n")
    return f"\n[{breaks:,} line breaks]\n" if breaks else f" [{len(run[0]):,} spaces] "


def _common(one: str, other: str) -> int:
    """Number of characters that both texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cut(text: str) -> tuple[str, int]:
    return text[:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)


def _ellipsis(text: str, length: int = 110) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
