"""Examples before they are tokenised, and how a row of data becomes one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from radistill.errors import RadistillError
from radistill.files import parse_json
from radistill.models.pictures import Picture

KEYS = ("messages", "prompt", "text")
# What others write beside them, with the way in which it is read here; further keys may be anything.
_ELSEWHERE = {
    "system": "a turn of role system in messages",
    "completion": "response",
    "functions": "tools",
    "documents": "a turn in messages",
    "chat_template_kwargs": "a chat template that has these settings",
}


@dataclass(frozen=True)
class Example:
    """A prompt or a text, before it meets a tokenizer.

    Attributes:
        id: name, unique in its source.
        messages: the conversation up to the response, as the chat template takes it; None for a text.
        text: running text without a chat template; None for a conversation.
        tools: descriptions of the functions that the assistant may call, as the chat template takes them; None if none.
        response: what the assistant answers; None if the teacher is to write it, and for a text.
        response_fields: what that turn has besides its content, such as `tool_calls`; None if nothing.
        verifier: how an answer is checked, for `evaluation.exact_match`; None if it cannot be.
        images: those of the conversation, in order; the content of its turns is then a list of parts, and a part of the
            type `image` is the place of one.
    """

    id: str
    messages: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    response: str | None = None
    response_fields: dict[str, Any] | None = None
    verifier: dict[str, Any] | None = None
    images: tuple[Picture, ...] = ()

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
        said = self.text if self.text is not None else json.dumps(self.messages, sort_keys=True)
        return " ".join([said, *(picture.sha256 for picture in self.images)])

    @property
    def content(self) -> tuple[str, str]:
        """What makes two examples the same."""
        return self.prompt, json.dumps([self.tools, self.response, self.response_fields], sort_keys=True)

    def to_row(self) -> dict[str, Any]:
        """The example as JSON, without the fields that it does not have (`verifier` is always there)."""
        row = {key: value for key, value in vars(self).items() if value not in (None, ())}
        shown = {"images": [picture.to_row() for picture in self.images]} if self.images else {}
        return row | shown | {"verifier": self.verifier}


def example_from_row(row: object, id: str, where: str, folder: Path | None = None) -> Example:
    """Read a row of data: `messages`, else `prompt` with or without `response`, else `text`; further keys are ignored.

    A last assistant turn in `messages` is the response. `tools` and `images` go with messages or a prompt. `answer`, a
    text or a number, becomes the verifier. Keys with which others add to a conversation are refused. Paths of images
    begin at `folder`, which is that of the file; None is the working directory.

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
    images = present.get("images") or []
    if not isinstance(images, list):
        raise RadistillError(f"{where}: images must be a list, not {_kind(images)}")
    folder = folder or Path()
    pictures = tuple(Picture.of(image, folder, f"{where}: images[{number}]") for number, image in enumerate(images))
    if known == "text":
        if pictures:
            raise RadistillError(f"{where}: images go with a prompt or messages, not with a text")
        return Example(id, text=_text(present, "text", where), verifier=verifier)
    for key, way in _ELSEWHERE.items():
        if present.get(key) and not (key == "completion" and present.keys() & {"messages", "response"}):
            raise RadistillError(
                f"{where}: {key} is not read, so the conversation would go without it; give it as {way}"
            )
    tools = _tools(present, where)
    if known == "prompt":
        response = _text(present, "response", where, empty=True) if "response" in present else None
        content = _text(present, "prompt", where)
        example = Example.of_user(id, content, tools=tools, response=response, verifier=verifier)
        return with_images(example, pictures, where)
    messages = present["messages"]
    if not isinstance(messages, list) or not messages:
        raise RadistillError(f"{where}: messages must be a list of turns, not {_kind(messages)}")
    messages = [_turn(turn, f"{where}: messages[{number}]", bool(pictures)) for number, turn in enumerate(messages)]
    answer = messages.pop() if messages[-1]["role"] == "assistant" else {}
    if not messages:
        raise RadistillError(f"{where}: messages has no turn before the assistant's response")
    fields = {key: value for key, value in answer.items() if key not in ("role", "content")}
    said = answer.get("content")
    example = Example(
        id,
        messages=tuple(messages),
        tools=tools,
        response=said if isinstance(said, str | None) else _joined(said, f"{where}: the response"),
        response_fields=fields or None,
        verifier=verifier,
    )
    return with_images(example, pictures, where)


def with_images(example: Example, pictures: tuple[Picture, ...], where: str) -> Example:
    """A conversation with images: where no part marks the place of one, all are before what the user says first.

    Raises:
        RadistillError: beginning with `where`, if there are more places than images, or fewer.
    """
    if not pictures:
        return example
    messages = [
        turn if isinstance(turn["content"], list) else {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        for turn in example.messages or ()
    ]
    places = sum(part["type"] == "image" for turn in messages for part in turn["content"])
    if not places:
        first = next((number for number, turn in enumerate(messages) if turn["role"] == "user"), None)
        if first is None:
            raise RadistillError(f"{where}: has images, but no turn of the user")
        content = [*({"type": "image"} for _ in pictures), *messages[first]["content"]]
        messages[first] = {**messages[first], "content": content}
    elif places != len(pictures):
        raise RadistillError(f"{where}: messages have {places} places of images, but there are {len(pictures)} images")
    return replace(example, messages=tuple(messages), images=pictures)


def _turn(turn: object, where: str, parts: bool) -> dict[str, Any]:
    """A turn without the fields that have nothing in them: APIs and `datasets` write them out, and templates trip."""
    if not isinstance(turn, Mapping):
        raise RadistillError(f"{where} must be an object, not {_kind(turn)}")
    found = {key: value for key, value in turn.items() if value not in (None, "", [], {})}
    if not isinstance(found.get("role"), str):
        raise RadistillError(f"{where}.role must be a text, not {_kind(turn.get('role'))}")
    content = turn.get("content")
    if parts and isinstance(content, list) and any(map(_is_place, content)):
        _joined([part for part in content if not _is_place(part)], where)
        content = [{"type": "image"} if _is_place(part) else {"type": "text", "text": part["text"]} for part in content]
        _check_json(content, f"{where}.content")
        return found | {"content": content}
    if isinstance(content, list) and content:
        content = _joined(content, where)
    elif content is None and found.keys() - {"role"}:
        content = ""  # a turn that calls a tool and says nothing
    if not isinstance(content, str):
        raise RadistillError(f"{where}.content must be a text, not {_kind(content)}")
    found["content"] = content
    if "tool_calls" in found:
        found["tool_calls"] = [_call(call, where) for call in _objects(found["tool_calls"], f"{where}.tool_calls")]
    for key, value in found.items():
        _check_json(value, f"{where}.{key}")
    return found


def _is_place(part: Any) -> bool:
    """Whether a part of a content is the place of an image."""
    return isinstance(part, Mapping) and part.get("type") == "image"


def _joined(parts: list[Any], where: str) -> str:
    """Content in parts as one text: templates that take parts write them one after the other."""
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise RadistillError(f"{where}.content[{number}] is {kind!r}, but only parts of type 'text' are read")
    return "".join(part["text"] for part in parts)


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """A call with its arguments as an object: APIs send them as a text, which templates would quote once more."""
    function = call.get("function")
    inner = function if isinstance(function, Mapping) else call
    arguments = inner.get("arguments")
    if not isinstance(arguments, str):
        return call
    arguments = parse_json(arguments or "{}", f"{where}.tool_calls: arguments")
    changed = {**inner, "arguments": arguments}
    return {**call, "function": changed} if inner is function else changed


def _tools(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...] | None:
    if not row.get("tools"):
        return None
    tools = row["tools"]
    if isinstance(tools, str):  # as data sets have them, whose columns need one type
        tools = parse_json(tools, f"{where}: tools") or []
    _check_json(tools, f"{where}: tools")
    return tuple(_objects(tools, f"{where}: tools")) or None


def _objects(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RadistillError(f"{where} must be a list of objects, not {_kind(value)}")
    return [dict(one) for one in value]


def _check_json(value: object, where: str) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise RadistillError(f"{where} holds something that JSON has no place for") from None
    check_unicode(value if isinstance(value, str) else text, where)


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
