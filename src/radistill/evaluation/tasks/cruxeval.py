"""CRUXEval: what does a short function return, and for which input does it return this (arXiv 2401.03065)?

An answer counts by what it does, not by how it is written. So it has to be run, and a model may write anything. Here is
why no answer can pass for right that is not:

- `cruxeval-o`: the answer is an expression. Its value, if it is not a plain literal, is found in the sandbox; whatever
  that process reports is what the model claims the function returns, and is compared here.
- `cruxeval-i`: the answer is a list of arguments. Their values are found in the same way, and only those values, as
  literals, go into a second process, in which the function runs and nothing that a model wrote. What that one returns
  is compared here. An argument that is a function has no literal, so such an answer is never right; two of the first
  400 published examples ask for one.
"""

import ast
from collections.abc import Callable
from functools import partial
from typing import Any

from radistill.data.examples import Example
from radistill.evaluation.code_answers import extract_call, extract_code, is_call, parsed
from radistill.evaluation.sandbox import layers, run_code
from radistill.evaluation.tasks.interface import Generated, TaskSettings, Verdict
from radistill.evaluation.tasks.rows import read_rows
from radistill.models.loading import Model

OUTPUT_PROMPT = """Here is a Python function.

```python
{code}
```

What does `f({input})` return? Think step by step. Then give the value, as a Python literal, between <answer> and \
</answer>."""
INPUT_PROMPT = """Here is a Python function.

```python
{code}
```

For which arguments does `f` return `{output}`? Any that do will count. Think step by step. Then give the call of `f` \
with these arguments between <answer> and </answer>."""


class _NoValue(Exception):
    """An answer that has no value of plain data."""


def output_of(expression: str) -> str:
    """Of an answer such as `f(1) == 2`, the side that the model wrote: `2`. Other answers are returned as they are."""
    others = [side for side in _sides(parsed(expression)) if not is_call(side)]
    if len(others) != 1:
        return expression
    # In brackets, for it may have stood in some and on several lines.
    source = _source(expression, others[0])
    return f"({source})" if "\n" in source else source


def arguments_of(expression: str) -> str:
    """Of an answer such as `f(1, 2)` or `f(1, 2) == 3`, the arguments: `1, 2`. Other answers are arguments already."""
    tree = parsed(expression)
    tree = next(filter(is_call, _sides(tree)), tree)
    if isinstance(tree, ast.Call) and is_call(tree):
        return ", ".join(_source(expression, node) for node in [*tree.args, *tree.keywords])
    return expression


def _sides(tree: ast.expr | None) -> list[ast.expr]:
    """Both sides of an equation; nothing of anything else."""
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq):
        return [tree.left, *tree.comparators]
    return []


def _source(expression: str, node: ast.AST) -> str:
    """A part of an expression as it is written: `ast.unparse` refuses some, such as long sums."""
    return ast.get_source_segment(expression, node) or expression


def judge_output(example: Example, response: str) -> Verdict:
    """Whether the answer's value equals what the function returns."""
    return _judged(example, extract_code(response), output_of, lambda answer, code: _value(answer))


def judge_input(example: Example, response: str) -> Verdict:
    """Whether the function, run on the answer's arguments, returns what it should."""
    return _judged(example, extract_call(response), arguments_of, _returned)


def _judged(
    example: Example, answer: str | None, part: Callable[[str], str], value_of: Callable[[str, str], Any]
) -> Verdict:
    """Whether the answer's `part` gives the right value; `value_of` takes it and the function's code."""
    assert example.verifier is not None
    if answer is None:
        return Verdict(False, None)
    expected = ast.literal_eval(example.verifier["answer"])
    try:
        answer = part(answer)
        return Verdict(bool(value_of(answer, example.verifier["code"]) == expected), answer)
    # Besides: what is nested too deeply to compare, and an integer too long to write down.
    except (_NoValue, RecursionError, MemoryError, ValueError, ArithmeticError):
        return Verdict(False, answer)


def _returned(arguments: str, code: str) -> Any:
    """What the function returns for these arguments."""
    positional, named = _arguments(arguments, code)
    return _sandboxed(code, f"f(*{positional!r}, **{named!r})")


def _value(expression: str, code: str = "") -> Any:
    """The value of an expression, as plain data; it may use what `code` defines.

    Raises:
        _NoValue: if it has none, or its value cannot be written as a literal.
    """
    try:
        return _literal(expression)
    except _NoValue:
        return _sandboxed(code, expression)


def _arguments(written: str, code: str) -> tuple[list[Any], dict[str, Any]]:
    """The values of a list of arguments: those by position and those by name."""
    found = _value(f"(lambda *a, **k: (list(a), k))({written}\n)", code)
    if (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], list)
        and isinstance(found[1], dict)
        and all(isinstance(name, str) for name in found[1])
    ):
        return found
    raise _NoValue


def _sandboxed(code: str, expression: str) -> Any:
    outcome = run_code(code, expression)
    if outcome.status != "value":
        raise _NoValue
    return _literal(outcome.text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _NoValue from None


def _problem(row: dict[str, Any]) -> str | None:
    """Why answers to a row cannot be judged; None if they can."""
    for field in ("code", "input", "output"):
        if not isinstance(row[field], str):
            return f"{field} is not a text"
    try:
        _literal(row["output"])
    except _NoValue:
        return f"output is no Python literal: {row['output'][:60]!r}"
    try:
        ast.parse(row["code"])
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        return f"code is no Python ({error})"
    call = parsed(f"f({row['input']}\n)")
    return None if call is not None and is_call(call) else f"input is no list of arguments: {row['input'][:60]!r}"


def _read(name: str, prompt: str, model: Model, settings: TaskSettings) -> list[Example]:
    layers()  # whether answers can be judged here, before any is written
    hub = ("cruxeval-org/cruxeval", None, "test")
    rows = read_rows((name, "cruxeval"), settings, hub, ("code", "input", "output"), _problem)
    return [
        Example.of_user(
            str(row.get("id", f"cruxeval-{number}")),
            prompt.format(**row),
            verifier={"kind": "code", "code": row["code"], "answer": row["output"]},
        )
        for number, row in enumerate(rows, start=1)
    ]


TASKS = tuple(
    Generated(name, partial(_read, name, prompt), judge, max_new_tokens=512, data_names=(name, "cruxeval"))
    for name, prompt, judge in (
        ("cruxeval-o", OUTPUT_PROMPT, judge_output),
        ("cruxeval-i", INPUT_PROMPT, judge_input),
    )
)
