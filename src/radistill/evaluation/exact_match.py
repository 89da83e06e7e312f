"""Exact match: find the answer in a response, and compare it with the right one.

Two numbers match if they are equal as numbers (`288.0` and `288`), two JSON values if they are equal as values. Answers
of other kinds are scored by the exercise's own verifier in reasoning-gym, and match at its full score.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from radistill.data.reasoning_gym import registry
from radistill.errors import RadistillError

# A minus after a digit, letter or closing bracket is a subtraction: the number in "10-3" is 3.
_NUMBER = re.compile(
    r"(?:(?<![^\W_])(?<![.)\]])([-+\u2212]))?\$?"  # sign, currency
    r"(?<![^\W_])(?<!\.)"  # not within a word or after a decimal point
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"  # digits, perhaps grouped by commas
    r"((?:[eE][-+]?[0-9]+)?)"
)
_FRACTION = re.compile(r"\\[dt]?frac|[0-9]\s*/\s*[0-9]")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_ANSWER_IS = re.compile(r"\banswer[*_\s]*(?:is\b|:|=)[\s*_:=]*(?=(\S[^\n]*))", re.IGNORECASE)
_LATEX = (("{,}", ","), (r"\!", ""), (r"\,", ""), (r"\$", "$"))


def extract_answer(text: str) -> str | None:
    r"""The answer that a response commits itself to.

    It is what stands, in this order of preference and last in the text, in `<answer>` tags, after `####`, in
    `\boxed{}`, or after "answer is" or "answer:"; of that, the first number, else the words. Without any such mark it
    is the last number of the text.

    Returns:
        A number as plain digits, without grouping commas, currency or percent signs; or words; None if there is
        neither mark nor number.
    """
    marked = _marked(text)
    if marked is None:
        numbers = list(_NUMBER.finditer(text))
        return _digits(numbers[-1]) if numbers else None
    number = None if _FRACTION.search(marked) else _NUMBER.search(marked)
    return _digits(number) if number else marked.strip("*_ \t").rstrip(".")


def extract_json(text: str, container: bool) -> Any:
    """The last JSON value in a text: the last object or array, or the last scalar that stands in none.

    Raises:
        ValueError: if there is none.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    position = 0
    # A value begins at a bracket or quote, or, outside of words, at a number or literal.
    start = re.compile(r'[{\["]|(?<![\w.])(?:-?[0-9]|true\b|false\b|null\b)')
    while match := start.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.start() + 1
            continue
        if isinstance(value, dict | list) == container:
            found.append(value)
    if not found:
        raise ValueError("no JSON value")
    return found[-1]


def is_correct(response: str, verifier: Mapping[str, Any]) -> bool:
    """Whether a response gives the right answer.

    Args:
        response: the text that a model wrote.
        verifier: `{"kind": "reasoning-gym", "task", "answer", "metadata"}`, or `{"kind": "answer", "answer"}`, where
            the answer may also be a whole solution with the result behind `####`.

    Raises:
        RadistillError: if the kind is unknown, or reasoning-gym is needed and not installed.
    """
    kind, expected = verifier.get("kind"), str(verifier.get("answer", "")).strip()
    if kind not in ("reasoning-gym", "answer"):
        raise RadistillError(f"verifier: kind is {kind!r}; known kinds are reasoning-gym and answer")
    if kind == "answer" and _HASHES.search(expected):
        expected = extract_answer(expected) or expected

    right = _value(expected)
    if right is not None:
        return right == _value(extract_answer(response) or "")
    is_json, value = _json(expected)
    answer = _words(response)
    if is_json:
        try:
            given = extract_json(response, container=isinstance(value, dict | list))
        except ValueError:
            return False
        same = _same(given, value)
        # Of unequal values codeio's verifier says how alike they are, by a tree distance that takes minutes.
        if same or verifier.get("task") == "codeio":
            return same
        answer = json.dumps(given)
    if kind == "answer":
        return answer.rstrip(".").casefold() == expected.rstrip(".").casefold()
    return _score(verifier, answer)


def _marked(text: str) -> str | None:
    """What stands at the strongest mark of an answer, at its last occurrence; None without any."""
    for find in (_TAG.findall, _HASHES.findall, _boxed, _ANSWER_IS.findall):
        found = [content for content in find(text) if content.strip()]
        if found:
            return str(found[-1]).strip()
    return None


def _boxed(text: str) -> list[str]:
    r"""The contents of every `\boxed{}`, braces within them included."""
    contents = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, position = 1, match.end()
        while position < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            position += 1
        content = text[match.end() : position - 1 if depth == 0 else position]
        for latex, plain in _LATEX:
            content = content.replace(latex, plain)
        contents.append(content)
    return contents


def _words(response: str) -> str:
    """The answer as words: what is marked as such, else the whole response."""
    return (_marked(response) or response).strip().strip("*_").strip()


def _digits(match: re.Match[str]) -> str:
    sign = "-" if match[1] in ("-", "\u2212") else ""
    return sign + match[2].replace(",", "") + match[3]


def _value(text: str) -> Decimal | None:
    """The number that a text consists of; None if it is not one, or not only one."""
    match = _NUMBER.fullmatch(text.strip().rstrip("%").rstrip("."))
    try:
        return Decimal(_digits(match)) if match else None
    except InvalidOperation:  # an exponent beyond all bounds
        return None


def _json(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: unlike in Python, true is not 1, also within lists and objects."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _score(verifier: Mapping[str, Any], answer: str) -> bool:
    entry = {"answer": verifier["answer"], "metadata": verifier.get("metadata", {})}
    scorer = _scorer(verifier["task"])
    try:
        score = scorer.score_answer(answer, entry)
    except Exception:  # a verifier may stumble over a senseless answer with any error, such as a parser's
        return False
    return bool(score == 1.0)


@cache
def _scorer(task: str) -> Any:
    tasks = registry()
    if task not in tasks:
        raise RadistillError(f"verifier: the installed reasoning-gym has no task {task!r}")
    dataset, config = tasks[task]
    return dataset(config(seed=0))
