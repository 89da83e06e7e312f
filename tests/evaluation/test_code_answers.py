"""What a model commits itself to in its own words."""

import pytest

from radistill.evaluation.code_answers import extract_call, extract_code

RESPONSES = [
    ("The list is sorted.\n<answer>[1, 2, 3]</answer>", "[1, 2, 3]"),
    ("<answer>1</answer> No, wait.\n<answer> 2 </answer>", "2"),
    ("<answer>\n```python\n'abc'\n```\n</answer>", "'abc'"),
    ("<answer>`{'a': 1}`</answer>", "{'a': 1}"),
    ("<ANSWER>True</ANSWER>", "True"),
    ("<answer>(1, 2)", "(1, 2)"),  # cut before the tag was closed
    ("[THOUGHT]\nIt doubles `x`.\n[/THOUGHT]\n[ANSWER]\nf(3) == 6\n[/ANSWER]", "f(3) == 6"),
    ("[ANSWER] [1, ['a']] [/ANSWER]\n[PYTHON]\ndef f(y):", "[1, ['a']]"),
    ("```python\nx[answer]\n```", "x[answer]"),
    ("[ANSWER]\n'left open'", "'left open'"),
    ("It gives\n```python\nassert f([3]) == [3]\n```", "f([3]) == [3]"),
    ("```\nfirst\n```\nand then\n```py\n'second'\n```\ndone", "'second'"),
    ("So the result is `['x', 'y']`.", "['x', 'y']"),
    ("First `a`, then `b`.", "b"),
    ("42", "42"),
    ("Let me think.\n\n'hello'\n", "'hello'"),
    ("<answer></answer> `7`", "7"),
    ("Between `<answer>` and </answer> goes `3`.", "3"),
    ("`<answer>4</answer>`", "4"),
    ("<think>Is it <answer>1</answer>?</think> It is `2`.", "2"),
    ("", None),
    ("   \n\n", None),
    ("<answer>" + "[" * 20_000 + "</answer>", None),
]


@pytest.mark.parametrize(("response", "code"), RESPONSES)
def test_extract_code(response: str, code: str | None) -> None:
    assert extract_code(response) == code


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("So `x` is 1. Therefore, the call `f(1, 'a')` returns `'abc'`.", "f(1, 'a')"),
        ("`f(2)` is `3`, hence `assert f(4) == 5`, which gives `5`.", "f(4) == 5"),
        ("`f(1)` or\n```python\nf(2)\n```\nwhich is `3`.", "f(2)"),
        ("```python\ndef f(x): ...\n```\nThen `f(2)` is `3`.", "f(2)"),
        ("The call `f(1)` returns `2`, i.e. <answer>2</answer>", "2"),
        ("It takes `'abc'`.", "'abc'"),
        ("the call of `f` with the argument `[1]` returns `[1, 2]`.", "[1]"),
        ("with the arguments `a = [1, 2]`, `b = 3` and `c='.'` results in `'x'`.", "a = [1, 2], b = 3, c='.'"),
        ("It takes two arguments, `a` and `b`. For the input `7` it returns `8`; `a` and `b` differ.", "7"),
        ("Its two arguments, `a` and `b`, are equal for `4`.", "4"),
        ("The input is `'a.b'`. In short, the input for the output `'ab'` is found.", "'a.b'"),
        ("The argument that returns `5` is `4`.", "4"),
        ("", None),
    ],
)
def test_extract_call(response: str, read: str | None) -> None:
    assert extract_call(response) == read
