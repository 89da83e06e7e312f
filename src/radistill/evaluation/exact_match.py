"""Exact match: compare the answer in a response with the right one.

Two numbers match if they are equal as numbers (`288.0` and `288`), two JSON values if they are equal as values. Answers
of other kinds are scored by the exercise's own verifier in reasoning-gym, and match at its full score.
"""

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from radistill.data.reasoning_gym import full_score, registry
from radistill.errors import RadistillError
from radistill.evaluation.final_answer import extract_answer, extract_words, plain_number

_LONGEST_NUMBER = 1000


def extract_json(text: str, container: bool) -> tuple[Any, str]:
    """The last JSON value in a text, and as it is written: the last object or array, or a scalar that is in none.

    Raises:
        ValueError: if there is none.
    """
    decoder = json.JSONDecoder()
    found: list[tuple[Any, str]] = []
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
            found.append((value, text[match.start() : position]))
    if not found:
        raise ValueError("no JSON value")
    return found[-1]


def check_verifier(verifier: Mapping[str, Any]) -> None:
    """Check that `is_correct` can judge answers by a verifier.

    Raises:
        RadistillError: if its kind is unknown, or reasoning-gym is needed and lacks the task or is not installed.
    """
    kind = verifier.get("kind")
    if kind not in ("reasoning-gym", "answer"):
        raise RadistillError(f"verifier: kind is {kind!r}; known kinds are reasoning-gym and answer")
    if "answer" not in verifier:
        raise RadistillError(f"verifier: has no answer, which the kind {kind} needs")
    if kind == "reasoning-gym" and verifier.get("task") not in registry():
        raise RadistillError(f"verifier: the installed reasoning-gym has no task {verifier.get('task')!r}")


def result_of(solution: str) -> str:
    """What a solution comes to: the answer behind its `####`, or all of it where it has none."""
    result = solution.rpartition("####")[2].strip()
    return (extract_answer(f"#### {result}") or result) if result != solution else solution


def is_correct(response: str, verifier: Mapping[str, Any]) -> bool:
    """Whether a response gives the right answer. A response cannot make it raise: what cannot be read is wrong.

    Args:
        response: the text that a model wrote.
        verifier: `{"kind": "reasoning-gym", "task", "answer", "metadata"}`, or `{"kind": "answer", "answer"}`, where
            the answer may also be a whole solution with the result behind `####`.

    Raises:
        RadistillError: as `check_verifier`.
    """
    check_verifier(verifier)
    try:
        return _is_correct(response, verifier)
    # Nested too deeply, too many digits for an integer, half a surrogate pair: no right answer looks like that.
    except (RecursionError, MemoryError, ValueError, ArithmeticError):
        return False


def _is_correct(response: str, verifier: Mapping[str, Any]) -> bool:
    is_exercise = verifier["kind"] == "reasoning-gym"
    expected = "" if verifier["answer"] is None else str(verifier["answer"]).strip()
    if not is_exercise:
        expected = result_of(expected)

    right = plain_number(expected)
    # An exercise may ask for a notation, or for a fraction in its lowest terms.
    if right is not None and (not is_exercise or (right == expected and "/" not in right)):
        return _is_number(right, extract_answer(response) or "", verifier if is_exercise else None)
    is_json, value = _json(expected)
    answer = extract_words(response)
    if is_json:
        container = isinstance(value, dict | list)
        try:
            given, answer = extract_json(answer, container)
        except ValueError:
            given, answer = extract_json(response, container)
        same = _same(given, value)
        # Of unequal values codeio's verifier says how alike they are, by a tree distance that takes minutes.
        if same or verifier.get("task") == "codeio":
            return same
    if is_exercise:
        return full_score(verifier, answer)
    return answer.rstrip(".").casefold() == expected.rstrip(".").casefold()


def _is_number(right: str, given: str, exercise: Mapping[str, Any] | None) -> bool:
    """Whether two numbers are equal, or an exercise takes the given one, such as one that is rounded."""
    digits = plain_number(given)
    if digits is None:
        return False
    expected, value = _value(right), _value(digits)
    if value == expected or exercise is None:
        return value == expected
    # Not all verifiers see a sign.
    return (value < 0) == (expected < 0) and full_score(exercise, digits)


def _value(digits: str) -> Fraction:
    """The value of plain digits, perhaps with an exponent or a divisor; an ArithmeticError beyond all bounds."""
    above, _, below = digits.partition("/")
    if len(digits) > _LONGEST_NUMBER or re.search("[eE][-+]?0*[1-9][0-9]{3}", digits):
        raise OverflowError
    return Fraction(above) / Fraction(below or 1)


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
