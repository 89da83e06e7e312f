"""Answers in responses as models write them, and what counts as right."""

import json
from typing import Any

import pytest

from radistill.data import reasoning_gym
from radistill.errors import RadistillError
from radistill.evaluation.exact_match import check_verifier, extract_json, is_correct


def gsm(answer: str) -> dict[str, Any]:
    return {"kind": "reasoning-gym", "task": "gsm_symbolic", "answer": answer, "metadata": {}}


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("So she has 288.0 left.", "288", True),
        ("So she has 288 left.", "288.0", True),
        ("#### 1,000", "1000", True),
        ("12.50", "12.5", True),
        ("0.30000000000000004", "0.3", False),
        ("It is -5.", "-5", True),
        ("It is 5.", "-5", False),
        ("It is -5.", "5", False),
        ("The answer is 56. That took 560 steps.", "560", False),
        ("2.8e2", "280", True),
        ("1e99999999999999999999", "5", False),
        ("9" * 5000, "5", False),
        ("", "5", False),
        ("nan", "5", False),
        ("\ud800", "5", False),
    ],
)
def test_numbers(response: str, answer: str, right: bool) -> None:
    assert is_correct(response, gsm(answer)) is right


@pytest.mark.parametrize(
    ("text", "container", "value"),
    [
        ('I think {"a": 1}, no: {"a": [2, {"b": null}]}.', True, {"a": [2, {"b": None}]}),
        ('```json\n{"root": 20.5}\n``` as "root" says', True, {"root": 20.5}),
        ("[1, 2] and then [3", True, [1, 2]),
        ("{'a': 1} [2]", True, [2]),
        ("the result is true", False, True),
        ('she said "yes" or "no"', False, "no"),
        ("-3.5e2 it is", False, -350.0),
        ("untrue, x1", False, None),
        ("[1, 2]", False, None),
        ("[" * 1500, True, None),
        ("", True, None),
    ],
)
def test_extract_json(text: str, container: bool, value: Any) -> None:
    if value is None:
        with pytest.raises(ValueError, match="no JSON"):
            extract_json(text, container)
    else:
        found, written = extract_json(text, container)
        assert json.loads(written) == value
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ('It gives {"root": 20.28}.', '{"root": 20.28}', True),
        ('{ "b":[1,2], "a" : true }', '{"a": true, "b": [1, 2]}', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": 1.0}', '{"a": 1}', True),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
        ("[[2, 3, 1],[3, 1, 2]]", "[[2, 3, 1], [3, 1, 2]]", True),
        ("[1, 2]", "[2, 1]", False),
        ("so it is true", "true", True),
        ("so it is 1", "true", False),
        ('"yes"', '"yes"', True),
        ("yes", '"yes"', False),
        ("null", "null", True),
        ("the output is 0.1429711288947661", "0.1429711288947661", True),
        ("no idea", '{"a": 1}', False),
        ('{"a": [' + "1, " * 300 + "1]}", '{"a": [' + "2, " * 300 + "2]}", False),
    ],
)
def test_codeio(response: str, answer: str, right: bool) -> None:
    assert is_correct(response, {"kind": "reasoning-gym", "task": "codeio", "answer": answer}) is right


def test_other_answers_are_scored_by_the_exercise_itself() -> None:
    pytest.importorskip("reasoning_gym")
    verifier = {"kind": "reasoning-gym", "task": "caesar_cipher", "answer": "A ROSE", "metadata": {}}
    assert is_correct("A ROSE", verifier)
    assert is_correct("Decoded.\n<answer>A ROSE</answer>", verifier)
    assert not is_correct("A ROSE IS", verifier)  # reasoning-gym gives part of a point
    assert not is_correct("", verifier)


def test_countdown_takes_every_solution() -> None:
    """The verifier of the exercise decides, not equality with the one solution that is stored."""
    pytest.importorskip("reasoning_gym")
    verifier = {
        "kind": "reasoning-gym",
        "task": "countdown",
        "answer": "2*(3+4)",
        "metadata": {"numbers": [2, 3, 4], "target": 14},
    }
    assert is_correct("<answer>(4+3)*2</answer>", verifier)
    assert not is_correct("<answer>2*3+4</answer>", verifier)
    assert not is_correct("<answer>7*2</answer>", verifier)


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("That makes 72.", "72", True),
        ("That makes 72.", "He sells 48/2 = 24.\nTogether 48+24 = 72.\n#### 72", True),
        ("The answer is Paris.", "paris", True),
        (r"\boxed{Paris}", "Paris", True),
        ("Paris, I think", "Paris", False),
        ("The answer is: [1, 2]", "[1,2]", True),
    ],
)
def test_answers_of_own_data(response: str, answer: str, right: bool) -> None:
    assert is_correct(response, {"kind": "answer", "answer": answer}) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The answer is 1/3.", "1/3", True),
        (r"\boxed{\frac{2}{6}}", "1/3", True),
        ("The answer is 0.25.", "1/4", True),
        (r"\boxed{3 \times 10^6}", "3,000,000", True),
        ("#### 1/0", "5", False),
        ("<answer>**Paris**</answer>", "Paris", False),
        ("It is this one.\n#### Paris", "steps\n#### Paris", True),
        ("<answer>[1, 2]</answer> and not [3]", "[1, 2]", True),
        ("[1, 2] and nothing else <answer>as said</answer>", "[1, 2]", True),
    ],
)
def test_more_answers_of_own_data(response: str, answer: str, right: bool) -> None:
    assert is_correct(response, {"kind": "answer", "answer": answer}) is right


def test_an_exercise_may_take_a_rounded_number() -> None:
    pytest.importorskip("reasoning_gym")
    verifier = {"kind": "reasoning-gym", "task": "power_function", "answer": "-1234.5678", "metadata": {}}
    assert is_correct("It is -1230.", verifier)
    assert not is_correct("It is 1230.", verifier)
    assert not is_correct("It is -1240.", verifier)


HOSTILE = {
    "nested lists": "[" * 1200 + "]" * 1200,
    "nested objects": '{"a":' * 1200 + "1" + "}" * 1200,
    "nested brackets": "(" * 1200 + "1" + ")" * 1200,
    "signs": "-" * 1200 + "1",
    "terms": "+".join("1" * 330),
    "digits": "9" * 5000,
    "digits in a list": f"[{'9' * 5000}]",
    "exponent": "1e999999999",
    "a power of powers": "9**9**9**9",
    "exponent in a list": "[1e999999999]",
    "infinite": "[Infinity, NaN]",
    "nothing divided": "1/0",
    "half a surrogate pair": "\ud800",
    "half a surrogate pair in JSON": r'["\ud800"]',
    "null character": "\0",
    "leaves": "exit()",
    "leaves by an exception": "__import__('sys').exit(0)",
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("expected", ["5", "1/3", "word", "[1]", "true"])
def test_hostile_answers_are_wrong(name: str, expected: str) -> None:
    for response in (HOSTILE[name], f"<answer>{HOSTILE[name]}</answer>", f"The answer is {HOSTILE[name]}"):
        assert is_correct(response, {"kind": "answer", "answer": expected}) is False
        assert is_correct(response, {"kind": "reasoning-gym", "task": "codeio", "answer": expected}) is False


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_to_exercises_are_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifiers of all sorts: some parse, some compute, some evaluate."""
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(reasoning_gym, "_SECONDS", 0.5)
    for task, answer, metadata in (
        ("binary_matrix", "0 1\n1 0", {}),
        ("simple_integration", "X**2 + C", {"integrand": "2*X", "variable": "X"}),
        ("list_functions", "[6, 7]", {}),
        ("power_function", "12.5", {}),
        ("graph_color", None, {"puzzle": {"vertices": [1], "edges": [], "num_colors": 3, "color_options": [1, 2, 3]}}),
        ("rush_hour", None, {"board_config": "oooooo" * 6}),
    ):
        verifier = {"kind": "reasoning-gym", "task": task, "answer": answer, "metadata": metadata}
        assert is_correct(f"<answer>{HOSTILE[name]}</answer>", verifier) is False


def test_unknown_verifiers() -> None:
    with pytest.raises(RadistillError, match="kind is 'regex'; known kinds are reasoning-gym and answer"):
        is_correct("1", {"kind": "regex", "answer": "1"})
    pytest.importorskip("reasoning_gym")
    with pytest.raises(RadistillError, match="no task 'nonsense'"):
        is_correct("x", {"kind": "reasoning-gym", "task": "nonsense", "answer": "word"})
    with pytest.raises(RadistillError, match="has no answer, which the kind answer needs"):
        check_verifier({"kind": "answer"})
