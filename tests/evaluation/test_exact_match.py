"""Answers in responses as models write them, and what counts as right."""

from typing import Any

import pytest

from radistill.errors import RadistillError
from radistill.evaluation.exact_match import extract_answer, extract_json, is_correct

ANSWERS = [
    # marks, the strongest first
    ("Six and six make 12.\n#### 12", "12"),
    ("#### 7\nLet me check again.\n#### 8", "8"),
    ("####9", "9"),
    ("#### $1,250.50 in total", "1250.50"),
    (r"Thus \boxed{42} is it, in 3 steps.", "42"),
    (r"\boxed{\text{about } 1{,}024 \text{ bytes}}", "1024"),
    (r"\boxed{\$18}", "18"),
    (r"\boxed{5", "5"),
    (r"so \boxed{{7}}.", "7"),
    ("The answer is 14. I used 3 steps.", "14"),
    ("The answer is: **15**", "15"),
    ("**Answer:** 16 apples", "16"),
    ("Final answer = -3", "-3"),
    ("The answer is $17.", "17"),
    ("The answer is\n18", "18"),
    ("The answer is 3. No, wait: the answer is 4.", "4"),
    ("<answer> 21 </answer> (page 3)", "21"),
    ("The answer is 1. #### 2", "2"),
    (r"#### 2 and \boxed{3}", "2"),
    # no mark: the last number
    ("We have 3 + 4 = 7", "7"),
    ("3 boxes of 12 make 36 eggs.", "36"),
    ("It costs $1,234,567.", "1234567"),
    ("a growth of 12.5%.", "12.5"),
    ("from 10-3", "3"),
    ("from 10 - 3", "3"),
    ("x=-3", "-3"),
    ("it is \u22125 degrees", "-5"),
    ("(2)-1", "1"),
    ("a debt of -$20", "-20"),
    ("about .5", ".5"),
    ("1e-05", "1e-05"),
    ("12,5", "5"),
    ("**42**", "42"),
    ("_42_", "42"),
    ("the 5th", "5"),
    ("in layer x12", None),
    ("1/2", "2"),
    # marks without a number
    ("The answer is unknown.", "unknown"),
    ("I counted 5. The answer is unknown.", "unknown"),
    (r"\boxed{\text{yes}}", r"\text{yes}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("#### 1/2", "1/2"),
    # nothing
    ("", None),
    ("####", None),
    ("no idea", None),
    ("The answer is", None),
    ("the Answer: ", None),
    ("I would rather not say. " * 200, None),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


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
        found = extract_json(text, container)
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


def test_unknown_verifiers() -> None:
    with pytest.raises(RadistillError, match="kind is 'regex'; known kinds are reasoning-gym and answer"):
        is_correct("1", {"kind": "regex", "answer": "1"})
    pytest.importorskip("reasoning_gym")
    with pytest.raises(RadistillError, match="no task 'nonsense'"):
        is_correct("x", {"kind": "reasoning-gym", "task": "nonsense", "answer": "word"})
