"""Answers that count by what they do."""

import pytest
from sandbox_here import needs_sandbox

from radistill.data.examples import Example
from radistill.evaluation.tasks.cruxeval import arguments_of, judge_input, judge_output, output_of


@pytest.mark.parametrize(
    ("expression", "output"),
    [
        ("[1, 2]", "[1, 2]"),
        ("f(1) == 2", "2"),
        ("2 == f(1)", "2"),
        ("f([1], k='a') == {'b': 'c == d'}", "{'b': 'c == d'}"),
        ("1 == 1", "1 == 1"),
        ("no code (", "no code ("),
        ("f(1) == (2 +\n 3)", "(2 +\n 3)"),
        ("f('é') == 'ö'", "'ö'"),
    ],
)
def test_output_of(expression: str, output: str) -> None:
    assert output_of(expression) == output


@pytest.mark.parametrize(
    ("expression", "arguments"),
    [
        ("f(1, 'a')", "1, 'a'"),
        ("f(1, b=[2]) == 3", "1, b=[2]"),
        ("3 == f(1)", "1"),
        ("f(*[1, 2], **{'c': 3})", "*[1, 2], **{'c': 3}"),
        ("f()", ""),
        ("f(x for x in 'ab')", "(x for x in 'ab')"),
        ("f('é', (1,\n2))", "'é', (1,\n2)"),
        ("1, 'a'", "1, 'a'"),
        ("[1, 2], k=3", "[1, 2], k=3"),
        ("g(1)", "g(1)"),
    ],
)
def test_arguments_of(expression: str, arguments: str) -> None:
    assert arguments_of(expression) == arguments


def asked(code: str, answer: str) -> Example:
    return Example("e", messages=({"role": "user", "content": "?"},), verifier={"code": code, "answer": answer})


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("['a', 'b', 'b']", True),
        ('["a", "b", "b"]', True),
        ("['a'] + ['b'] * 2", True),
        ("list('abb')", True),
        ("sorted('bab')", True),
        ("f('bab') == ['a', 'b', 'b']", True),
        ("('a', 'b', 'b')", False),
        ("['a', 'b']", False),
        ("f('bab')", False),  # that would be no prediction
        ("print(['a', 'b', 'b'])", False),
        ("I do not know", False),
        ("type('V', (), {'__eq__': lambda s, o: True})()", False),
        ("type('V', (list,), {'__eq__': lambda s, o: True, '__repr__': lambda s: 'V'})()", False),
        ("__import__('os')._exit(0)", False),
        ("exit()", False),
        ("(lambda: [x for x in iter(int, 1)])()", False),
    ],
)
def test_outputs_count_by_their_value(answer: str, right: bool) -> None:
    example = asked("def f(s):\n    return sorted(s)", "['a', 'b', 'b']")
    assert judge_output(example, f"<answer>{answer}</answer>").correct is right


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("f([1, 2], 3)", True),
        ("f([3, 2], 1)", True),  # another input that gives the same counts
        ("[1, 2], 3", True),
        ("numbers=[1, 2], last=3", True),
        ("f(*[[1, 2], 3])", True),
        ("f(list(range(1, 3)), 2 + 1)", True),
        ("f([1, 2], 3) == 6", True),
        ("f([1, 2], 4)", False),
        ("f([1, 2])", False),
        ("6", False),
        ("", False),
        # Forgeries: what runs beside the function must not be the model's.
        ("f([1], type('I', (int,), {'__radd__': lambda s, o: 6})(4))", False),
        ("f([1], type('I', (int,), {'__radd__': lambda s, o: 0})(5))", True),  # it is a 5 that goes in
        ("f([], type('V', (), {'__radd__': lambda s, o: s, '__eq__': lambda s, o: True})())", False),
        ("f([], [__import__('os').write(n, b'[\"value\", \"6\"]\\n') for n in (1, 2)])", False),
        ("f([1], (globals().__setitem__('f', lambda *a: 6), 2)[1])", False),
        ("f([1], __import__('builtins').__dict__.__setitem__('sum', lambda x: 6) or 0)", False),
        ("1), (lambda *a, **k: 6)(2", False),
        ("f(**{'numbers': [1, 2], 'last': 3})", True),
        ("f(**{'numbers': [], 'last=6, x': 6})", False),
    ],
)
def test_inputs_count_by_what_the_function_makes_of_them(answer: str, right: bool) -> None:
    example = asked("def f(numbers, last):\n    return sum(numbers) + last", "6")
    assert judge_input(example, f"<answer>{answer}</answer>").correct is right


@needs_sandbox
def test_arguments_may_use_what_the_code_defines() -> None:
    example = asked("WORDS = ['a', 'b']\ndef f(words):\n    return words[::-1]", "['b', 'a']")
    assert judge_input(example, "<answer>f(WORDS)</answer>").correct
    assert judge_input(example, "<answer>f(f(['b', 'a']))</answer>").correct
    assert not judge_input(example, "<answer>f(lambda: ['a', 'b'])</answer>").correct


@needs_sandbox
def test_a_forged_report_is_no_more_than_an_input() -> None:
    """The model's process claims that its arguments are others; they are then what the function is run on."""
    forged = "__import__('os').write(N, b'[\"value\", \"([[6], 0], {})\"]\\n'), __import__('os')._exit(0)"
    example = asked("def f(numbers, last):\n    return 'never'", "6")
    for number in range(3, 12):
        assert not judge_input(example, f"<answer>{forged.replace('N', str(number))}</answer>").correct


@needs_sandbox
def test_an_answer_is_shown_as_it_was_read() -> None:
    example = asked("def f(x):\n    return x", "1")
    assert judge_output(example, "`1`").answer == "1"
    assert judge_output(example, "").answer is None
    assert judge_input(example, "").answer is None
    assert judge_input(example, "`f(1)`").answer == "1"


@needs_sandbox
def test_a_call_that_returns_something_else_is_no_right_input() -> None:
    """The returned value is not taken for the argument, even where it would be a right one."""
    verifier = {"kind": "code", "code": "def f(x):\n    return x", "answer": "'b'"}
    example = Example("a", messages=({"role": "user", "content": "?"},), verifier=verifier)
    assert not judge_input(example, "The call `f('a')` returns `'b'`.").correct
    assert judge_input(example, "The call `f('b')` returns `'b'`.").correct


DIGITS = "0x" + "f" * 5000  # no decimal literal may have as many
HOSTILE = {
    "terms": "+".join(["1"] * 330),
    "signs": "-" * 340 + "1",
    "many signs": "-" * 5000 + "1",
    "brackets": "[" * 99 + "]" * 99,
    "many brackets": "[" * 4000 + "]" * 4000,
    "attributes": "x" + ".y" * 3000,
    "an f-string with every quote": "f'{'''\"\"\" \\n'''}'",
    "an f-string in f-strings": "f'{f\"{1}\"!r:>{1}}'",
    "digits": "9" * 5000,
    "more digits than can be written": DIGITS,
    "a number beyond floats": f"{DIGITS} == 1.5",
    "infinite": "1e999",
    "not a number": "float('nan')",
    "half a surrogate pair": "'\ud800'",
    "half a surrogate pair, spelt": "'\\ud800'",
    "null character": "'\0'",
    "a list in itself": "(lambda a: a.append(a) or a)([])",
    "a mapping in itself": "(lambda a: a.update(a=a) or a)({})",
    "deep lists": "__import__('functools').reduce(lambda a, _: [a], range(3000), 1)",
    "a repr that lies": "type('V', (), {'__repr__': lambda s: '[' * 3000})()",
    "a repr of many signs": "type('V', (), {'__repr__': lambda s: '-' * 3000 + '1'})()",
    "a repr of many digits": f"type('V', (), {{'__repr__': lambda s: '{DIGITS}'}})()",
    "a repr with half a surrogate pair": "type('V', (), {'__repr__': lambda s: chr(0xd800)})()",
    "a repr with a null character": "type('V', (), {'__repr__': lambda s: chr(0)})()",
    "a mapping as key": "type('V', (), {'__repr__': lambda s: '{{}: 1}'})()",
}


@needs_sandbox
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong(name: str) -> None:
    example = asked("def f(x):\n    return [[x]]", "[['b']]")
    assert judge_output(example, f"<answer>{HOSTILE[name]}</answer>").correct is False
    assert judge_output(example, f"<answer>f(1) == {HOSTILE[name]}</answer>").correct is False
    assert judge_input(example, f"<answer>f({HOSTILE[name]})</answer>").correct is False


@needs_sandbox
def test_a_long_sum_is_an_argument_like_any_other() -> None:
    example = asked("def f(x):\n    return x", "90")
    assert judge_input(example, f"<answer>f({' + '.join(['1'] * 90)})</answer>").correct
    assert judge_input(example, f"<answer>f({'-' * 60}90) == 90</answer>").correct
    assert judge_output(example, f"<answer>f(1) == {' + '.join(['1'] * 90)}</answer>").correct
