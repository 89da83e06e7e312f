"""Examples before they are tokenised, and how a row of data becomes one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from radistill.errors import RadistillError

KEYS = ("messages", "prompt", "text")


@dataclass(frozen=True)
class Example:
    """A prompt or a text, before it meets a tokenizer.

    Attributes:
        id: name, unique in its source.
        messages: the conversation up to the response, as the chat template takes it; None for a text.
        text: running text without a chat template; None for a conversation.
        response: what the assistant answers; None if the teacher is to write it, and for a text.
        verifier: how an answer is checked, for `evaluation.exact_match`; None if it cannot be.
    """

    id: str
    messages: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    response: str | None = None
    verifier: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise ValueError(f"example {self.id}: either messages or text")

    @classmethod
    def of_user(cls, id: str, content: str, **fields: Any) -> "Example":
        """A conversation that begins with what a user says; `fields` are the further ones."""
        return cls(id, messages=({"role": "user", "content": content},), **fields)

    @property
    def prompt(self) -> str:
        """What must not be in two splits: the conversation up to the response, or the text."""
        return self.text if self.text is not None else json.dumps(self.messages, sort_keys=True)

    def to_row(self) -> dict[str, Any]:
        """The example as JSON, without the fields that it does not have (`verifier` is always there)."""
        row = {key: value for key, value in asdict(self).items() if value is not None}
        if self.messages is not None:
            row["messages"] = [dict(message) for message in self.messages]
        return row | {"verifier": self.verifier}


def example_from_row(row: object, id: str, where: str) -> Example:
    """Read a row of data: `messages`, else `prompt` with or without `response`, else `text`; further keys are ignored.

    A last assistant turn in `messages` is the response. `answer`, a text or a number, becomes the verifier.

    Raises:
        RadistillError: if the row has none of the keys or one has a wrong type. The message begins with `where`.
    """
    if not isinstance(row, Mapping):
        raise RadistillError(f"{where}: a row must be a JSON object, not {_kind(row)}")
    present = {key: value for key, value in row.items() if value is not None}
    known = next((key for key in KEYS if key in present), None)
    if known is None:
        has = ", ".join(map(str, row)) or "no keys"
        raise RadistillError(f"{where}: needs one of messages, prompt (with or without response), text; it has: {has}")

    verifier = _verifier(present, where)
    if known == "text":
        return Example(id, text=_text(present, "text", where), verifier=verifier)
    if known == "prompt":
        response = _text(present, "response", where, empty=True) if "response" in present else None
        return Example.of_user(id, _text(present, "prompt", where), response=response, verifier=verifier)
    messages = _messages(present["messages"], where)
    response = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages:
        raise RadistillError(f"{where}: messages has no turn before the assistant's response")
    return Example(id, messages=tuple(messages), response=response, verifier=verifier)


def _messages(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RadistillError(f"{where}: messages must be a list of turns, not {_kind(value)}")
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            raise RadistillError(f"{where}: messages[{number}] must be an object, not {_kind(turn)}")
        for key in ("role", "content"):
            if not isinstance(turn.get(key), str):
                raise RadistillError(f"{where}: messages[{number}].{key} must be a text, not {_kind(turn.get(key))}")
            check_unicode(turn[key], f"{where}: messages[{number}].{key}")
    return [dict(turn) for turn in value]


def _text(row: Mapping[str, Any], key: str, where: str, empty: bool = False) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise RadistillError(f"{where}: {key} must be a text, not {_kind(value)}")
    if not value.strip() and not empty:
        raise RadistillError(f"{where}: {key} is empty")
    check_unicode(value, f"{where}: {key}")
    return value


def check_unicode(value: str, where: str) -> None:
    """RadistillError for half a surrogate pair, which JSON can spell (`"\\ud800"`) and no tokenizer or file takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RadistillError(f"{where} has half a surrogate pair at character {error.start}") from None


def _verifier(row: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    answer = row.get("answer")
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RadistillError(f"{where}: answer must be a text or a number, not {_kind(answer)}")
    return {"kind": "answer", "answer": _text({"answer": str(answer)}, "answer", where)}


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


@dataclass(frozen=True)
class Rows:
    """The examples of a source, in an order that is a function of its settings and the seed.

    Attributes:
        origin: where they come from, for messages.
        examples: read only as far as they are needed.
        heldout: rows meant for the held-out split alone; None if it is drawn from `examples`.
    """

    origin: str
    examples: Iterable[Example]
    heldout: Iterable[Example] | None = None
