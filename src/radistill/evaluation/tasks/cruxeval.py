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
import re
from collections.abc import Callable
from typing import Any

from radistill.distillation.data.examples import Example
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

_LONGEST_ANSWER = 10_000
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class _NoValue(Exception):
    """An answer that has no value of plain data."""


def extract_code(response: str, calls: bool = False) -> str | None:
    """The expression that a response commits itself to.

    It is what stands, in this order of preference and last in the text, in `<answer>` tags, in a fenced block, in
    backticks, or on the last line. Fences and backticks within the tags are taken off, and `assert` before it.

    Args:
        response: what the model wrote.
        calls: a call of `f` is asked for. Without tags one goes before whatever else is there: a model that says what
            its call returns says that last.

    Returns:
        The expression as it was written; None if there is none, or if it is longer than any answer can be.
    """
    for pattern in (_TAG, _FENCE, _SPAN):
        found = [content.strip() for content in pattern.findall(response) if content.strip()]
        if found:
            break
    else:
        found = [line.strip() for line in response.splitlines() if line.strip()]
    if not found:
        return None
    if calls and pattern is not _TAG:
        found = [content for content in found if _with_call(content)] or found
    content = found[-1]
    if fenced := _FENCE.search(content):
        content = fenced[1].strip()
    content = content.strip("`").strip().removeprefix("assert ").strip()
    return content if 0 < len(content) <= _LONGEST_ANSWER else None


def output_of(expression: str) -> str:
    """Of an answer such as `f(1) == 2`, the side that the model wrote: `2`. Other answers are returned as they are."""
    tree = _parsed(expression)
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq):
        sides = [tree.left, tree.comparators[0]]
        others = [side for side in sides if not _is_call(side)]
        if len(others) == 1:
            return ast.unparse(others[0])
    return expression


def arguments_of(expression: str) -> str:
    """Of an answer such as `f(1, 2)` or `f(1, 2) == 3`, the arguments: `1, 2`. Other answers are arguments already."""
    tree = _parsed(expression)
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq):
        tree = next((side for side in (tree.left, tree.comparators[0]) if _is_call(side)), tree)
    if isinstance(tree, ast.Call) and _is_call(tree):
        return ", ".join(map(ast.unparse, [*tree.args, *tree.keywords]))
    return expression


def judge_output(example: Example, response: str) -> Verdict:
    """Whether the answer's value equals what the function returns."""
    return _judged(example, extract_code(response), output_of, lambda answer, code: _value(answer))


def judge_input(example: Example, response: str) -> Verdict:
    """Whether the function, run on the answer's arguments, returns what it should."""
    return _judged(example, extract_code(response, calls=True), arguments_of, _returned)


def _judged(
    example: Example, answer: str | None, part: Callable[[str], str], value_of: Callable[[str, str], Any]
) -> Verdict:
    """Whether the answer's `part` gives the right value; `value_of` takes it and the function's code."""
    assert example.verifier is not None
    if answer is None:
        return Verdict(False, None)
    answer = part(answer)
    try:
        value = value_of(answer, example.verifier["code"])
        return Verdict(_equal(value, ast.literal_eval(example.verifier["answer"])), answer)
    except _NoValue:
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


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:
        return False


def _parsed(expression: str) -> ast.expr | None:
    try:
        return ast.parse(expression, mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _with_call(written: str) -> bool:
    """Whether it is a call of `f`, or says what one equals."""
    tree = _parsed(written.removeprefix("assert ").strip())
    return tree is not None and any(map(_is_call, [tree, *ast.iter_child_nodes(tree)]))


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "f"


def _read(name: str, prompt: str, settings: TaskSettings) -> list[Example]:
    layers()  # whether answers can be judged here, before any is written
    rows = read_rows((name, "cruxeval"), settings, ("cruxeval-org/cruxeval", None, "test"), ("code", "input", "output"))
    return [
        Example(
            str(row.get("id", f"cruxeval-{number}")),
            messages=({"role": "user", "content": prompt.format(**row)},),
            verifier={"kind": "code", "code": row["code"], "answer": row["output"]},
        )
        for number, row in enumerate(rows, start=1)
    ]


def _read_output(model: Model, settings: TaskSettings) -> list[Example]:
    return _read("cruxeval-o", OUTPUT_PROMPT, settings)


def _read_input(model: Model, settings: TaskSettings) -> list[Example]:
    return _read("cruxeval-i", INPUT_PROMPT, settings)


TASKS = (
    Generated("cruxeval-o", _read_output, judge_output, max_new_tokens=512, data_names=("cruxeval-o", "cruxeval")),
    Generated("cruxeval-i", _read_input, judge_input, max_new_tokens=512, data_names=("cruxeval-i", "cruxeval")),
)
