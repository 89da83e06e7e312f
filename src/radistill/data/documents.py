"""From examples to tokens: the chat template, and where the response begins."""

import copy
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from radistill.console import note
from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.files import read_json, write_json
from radistill.models.checkpoint import one_line
from radistill.models.endings import end_of_turn
from radistill.models.pictures import Reader

Turns = Sequence[Mapping[str, Any]]

# What a turn was thought up with. Templates leave it out of earlier turns, because models are trained without it.
_REASONING = {"reasoning_content", "reasoning", "thinking"}
# What tells turns apart, and says nothing that a model reads.
_LABELS = {"id", "index", "name", "tool_call_id", "timestamp", "created", "model"}
# What a date may be made of.
_CLOCK = (*"aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ", *(f"-{part}" for part in "dHIjklmMSyU"), "%")
# A tag at the end of a prompt, such as <think> or [THINK], and one that the prompt closes again.
_OPENED = re.compile(r"(?:<\w+>|\[[A-Z]+\])\s*\Z")
_CLOSED = re.compile(r"(?P<tag>[<\[]\w+[>\]])\s*[<\[]/\w+[>\]]\s*\Z")


class Learnt(NamedTuple):
    """A response of the data: its tokens, and whether the template has left out a part of its text."""

    tokens: list[int]
    shortened: bool


def prompt_tokens(
    example: Example, tokenizer: PreTrainedTokenizerBase, system: str | None = None, reader: Reader | None = None
) -> list[int]:
    """Tokens of a conversation up to the point where the assistant's response begins; of a plain text, all of them.

    A text has the special tokens that the tokenizer itself adds; in a conversation the template writes them.

    Args:
        example: the conversation or the text.
        tokenizer: with the chat template.
        system: system prompt of a conversation that has none.
        reader: puts the image tokens in; None where the model reads no images.

    Raises:
        RadistillError: if there are images and no reader, the tokenizer has no chat template, or its template refuses
            the conversation or leaves out a part of it.
    """
    if example.text is not None:
        return list(tokenizer(example.text, verbose=False)["input_ids"])
    turns = _conversation(example, system)
    render = partial(_render, tokenizer, example.id, prompt=True, tools=example.tools)
    prompt = render(turns)
    if example.images:
        if reader is None:
            raise RadistillError(f"{example.id}: has images, but this model was loaded as one that reads text alone")
        _check_parts(example, turns, prompt)
        return reader.tokens(prompt, example.images, example.id)
    if example.tools and render(turns, tools=None) == prompt:
        raise _left_out(example, "tools")
    added = len(turns) - len(example.messages or ())
    written = _written(turns, prompt, render)
    for number in range(len(turns)):
        if number not in written and (field := _unread(turns, number, prompt, render, _REASONING)):
            raise _left_out(example, "data.system" if number < added else f"messages[{number - added}].{field}")
    return _tokens(tokenizer, prompt)


def response_tokens(example: Example, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Learnt:
    """Tokens of the response that the data gives, to follow `prompt_tokens`; the last one ends the turn.

    Prompt and response together are the template's rendering of the whole conversation, up to the end of the turn.
    Where they cannot be, because the template renders earlier turns otherwise, a token spans the border, or the
    prompt opens a tag such as `<think>` that the rendered turn does not have, the response is tokenised by itself.

    Raises:
        RadistillError: as `prompt_tokens`, or if the response does not close the tag that the prompt opens.
    """
    turns = _conversation(example, system)
    said: Any = example.response or ""
    if example.images:
        said = [{"type": "text", "text": said}]
    answered = [*turns, {"role": "assistant", "content": said, **(example.response_fields or {})}]
    render = partial(_render, tokenizer, example.id, tools=example.tools)
    prompt, whole = render(turns, prompt=True), render(answered, prompt=False)
    shortened = False
    if whole.startswith(prompt):
        text = whole[len(prompt) :]
        if not example.images and (
            field := _unread(answered, len(turns), text, lambda other: render(other, prompt=False)[len(prompt) :])
        ):
            raise _left_out(example, f"the response's {field}")
        # White space is the template's to set, and a tag may stand in the prompt already.
        opened = _OPENED.search(prompt)
        written = "".join(f"{opened[0] if opened else ''}{text}".split())
        shortened = "".join((example.response or "").split()) not in written
        before, tokens = _tokens(tokenizer, prompt), _tokens(tokenizer, whole)
        response = tokens[len(before) :] if tokens[: len(before)] == before else _tokens(tokenizer, text)
    else:
        response = _tokens(tokenizer, _after_opening(example, prompt))

    end = end_of_turn(tokenizer)
    if end is None:
        return Learnt(response, shortened)
    if end in response:
        # What a template writes after the end of the turn, such as a line break, is not the model's to write.
        last = len(response) - 1 - response[::-1].index(end)
        return Learnt(response[: last + 1], shortened)
    return Learnt([*response, end], shortened)


def _check_parts(example: Example, turns: Turns, rendered: str) -> None:
    """Refuse a template that leaves out a text of a conversation whose content is in parts."""
    for number, turn in enumerate(turns):
        for part in turn["content"]:
            if part["type"] == "text" and part["text"].strip() not in rendered:
                raise _left_out(example, f"messages[{number}].content")


def with_kept_date(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """`tokenizer`, or a copy whose template prints the date that is kept in `folder` where it prints today's.

    So work that goes on another day has the same prompts, and finds the answers to them.

    Raises:
        RadistillError: if the kept date is damaged.
    """
    if "strftime_now" not in str(tokenizer.chat_template):
        return tokenizer
    path = folder / "date.json"
    if path.exists():
        try:
            now = datetime.fromisoformat(read_json(path)["date"])
        except (TypeError, KeyError, ValueError):
            raise RadistillError(f"{path}: holds no date; remove it, and prompts get today's") from None
    else:
        now = datetime.now().replace(microsecond=0)
        write_json(path, {"date": now.isoformat()})
        note(f"{path}: the chat template prints the date, and prompts here keep that of {now:%d %B %Y}")
    parts = [f"replace({f'%{part}'!r}, {json.dumps(now.strftime(f'%{part}'), ensure_ascii=False)})" for part in _CLOCK]
    clock = f"{{% macro strftime_now(format) %}}{{{{ format | {' | '.join(parts)} }}}}{{% endmacro %}}\n"
    tokenizer = copy.deepcopy(tokenizer)
    templates = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: clock + one for name, one in templates.items()} if isinstance(templates, dict) else f"{clock}{templates}"
    )
    return tokenizer


def _conversation(example: Example, system: str | None) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = list(example.messages or ())
    if system is not None and messages[0]["role"] != "system":
        said: Any = [{"type": "text", "text": system}] if example.images else system
        messages.insert(0, {"role": "system", "content": said})
    return messages


def _fields(turn: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """What of a turn has to be read; fields in `free` may be left out."""
    return [field for field in turn if field not in {"role", *_LABELS, *free} and turn[field]]


def _written(turns: Turns, rendered: str, render: Callable[[Turns], str]) -> set[int]:
    """Turns with nothing but a content that is surely in `rendered`, asked for all turns at once.

    That the text stands there is not enough, as another turn may say the same: other words in its place have to be
    written as well.
    """
    others = [{**turn, "content": f"radistill-{number}-"} for number, turn in enumerate(turns)]
    try:
        other = render(others)
    except RadistillError:  # the template looks at what is said
        return set()
    return {
        number
        for number, turn in enumerate(turns)
        if _fields(turn, _REASONING) == ["content"]
        and turn["content"].strip() in rendered
        and others[number]["content"] in other
    }


def _unread(
    turns: Turns,
    number: int,
    rendered: str,
    render: Callable[[Turns], str],
    free: Collection[str] = (),
) -> str | None:
    """The first field of a turn without which `rendered` would be the same; those in `free` may be left out."""
    turn = turns[number]
    for field in _fields(turn, free):
        other = {key: value for key, value in turn.items() if key != field}
        if field == "content":
            other = {**turn, "content": "radistill"}
        with suppress(RadistillError):  # without the field it is no conversation that the template takes
            if render([*turns[:number], other, *turns[number + 1 :]]) == rendered:
                return field
    return None


def _left_out(example: Example, field: str) -> RadistillError:
    return RadistillError(
        f"{example.id}: the chat template leaves out {field}, so the model would neither read nor learn it; "
        "take a template that writes it, write it into the content, or remove it from the data"
    )


def _after_opening(example: Example, prompt: str) -> str:
    """The response by itself, where the rendered turn does not begin as the prompt ends.

    The prompt may end with a tag, such as `<think>`: then the response's own one is left out, so that there is one.
    """
    if example.response_fields:
        raise _left_out(example, f"the response's {next(iter(example.response_fields))}")
    content = example.response or ""
    if (closed := _CLOSED.search(prompt)) and closed["tag"] in content:
        raise RadistillError(
            f"{example.id}: the chat template's prompt closes {closed['tag']}, and the response opens it again; give "
            "responses without it, or a template that leaves it to the response"
        )
    opened = _OPENED.search(prompt)
    if opened is None:
        return content
    tag = opened[0].rstrip()
    if f"{tag[0]}/{tag[1:]}" not in content:
        raise RadistillError(
            f"{example.id}: the chat template's prompt opens {tag}, and the response does not close it; give "
            "responses with their reasoning, or let the teacher write them (data.responses.source: teacher)"
        )
    return content.lstrip().removeprefix(tag).removeprefix(prompt[opened.start() + len(tag) :])


def _render(
    tokenizer: PreTrainedTokenizerBase,
    id: str,
    messages: Turns,
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    prompt: bool,
) -> str:
    if not tokenizer.chat_template:
        raise RadistillError(
            f"{id}: this model's tokenizer has no chat template, which messages and prompts need; "
            "use rows with text, or put a chat_template.jinja into the model's folder"
        )
    settings: dict[str, Any] = {"tools": tools, "tokenize": False, "add_generation_prompt": prompt}
    try:
        return str(tokenizer.apply_chat_template(cast(Any, messages), **settings))
    except Exception as error:  # a template may raise anything: jinja's errors, its own refusals, a TypeError
        raise RadistillError(f"{id}: the chat template refuses this conversation: {one_line(error)}") from error


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template has already written the special tokens, such as the one for the beginning.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
