"""The expression that a response to a question about code commits itself to: a value, or the call of a function."""

import ast
import re

from radistill.evaluation.final_answer import spoken

LONGEST_ANSWER = 10_000
"""Characters; what is longer is no answer to any question of this kind."""

# Ours, and CRUXEval's own. A tag that is only named, in backticks of its own, opens nothing.
_OPENING, _CLOSING = r"(?:(?i:<answer>)|\[ANSWER\])", r"(?:(?i:</answer>)|\[/ANSWER\]|$)"
_TAG = re.compile(rf"(?:(?<!`){_OPENING}|{_OPENING}(?!`))(.*?){_CLOSING}", re.DOTALL)
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_GIVEN = re.compile(
    r"\b(?:arguments?|inputs?)\b(?P<words>[^`.\n]*)(?P<spans>`[^`\n]+`(?:(?:,? and |, )`[^`\n]+`)*)", re.IGNORECASE
)
_OF_RESULT = re.compile(r"return|result|output|produc|achiev|yield|give", re.IGNORECASE)


def extract_code(response: str) -> str | None:
    """The expression that a response commits itself to.

    It is what stands, in this order of preference and last in the text, in `<answer>` or `[ANSWER]` tags, in a fenced
    block, in backticks, or on the last line. Fences and backticks within the tags, and `assert`, are taken off.

    Returns:
        The expression as it was written; None if there is none, or if it is longer than any answer can be.
    """
    response = spoken(response)
    for pattern in (_TAG, _FENCE, _SPAN):
        if found := _contents(pattern, response):
            return _bare(found[-1])
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else None


def extract_call(response: str) -> str | None:
    """The call of `f`, or the arguments of one, that a response commits itself to.

    A model that says what its call returns says that last. So without tags, the last call in a fenced block or in
    backticks goes before anything else, and then what the last "with the arguments `1` and `x = 2`" names. Without
    either it is what `extract_code` reads.

    Returns:
        As `extract_code`; several arguments that were named are joined by commas.
    """
    response = spoken(response)
    if not _contents(_TAG, response):
        written = [found for pattern in (_FENCE, _SPAN) for found in pattern.finditer(response)]
        codes = [_bare(found[1]) for found in sorted(written, key=re.Match.start)]
        if calls := [code for code in codes if code and _with_call(code)]:
            return calls[-1]
        named = [_SPAN.findall(given["spans"]) for given in _GIVEN.finditer(response) if not _of_result(given)]
        if values := [spans for spans in named if not all(map(_is_name, spans))]:
            return _bare(", ".join(values[-1]))
    return extract_code(response)


def is_call(node: ast.AST) -> bool:
    """Whether it is a call of `f`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "f"


def parsed(expression: str) -> ast.expr | None:
    """Its tree; None if it is no Python expression."""
    try:
        return ast.parse(expression, mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _contents(pattern: re.Pattern[str], response: str) -> list[str]:
    return [content.strip() for content in pattern.findall(response) if content.strip()]


def _bare(content: str) -> str | None:
    """Without fences, backticks and `assert` around it."""
    if fenced := _FENCE.search(content):
        content = fenced[1].strip()
    content = content.strip("`").strip().removeprefix("assert ").strip()
    return content if 0 < len(content) <= LONGEST_ANSWER else None


def _of_result(given: re.Match[str]) -> bool:
    """Whether what is named is the result: "the input that returns `3`"."""
    return _OF_RESULT.search(given["words"]) is not None


def _is_name(code: str) -> bool:
    """Whether it is a bare name, as of a parameter."""
    return isinstance(parsed(code), ast.Name)


def _with_call(code: str) -> bool:
    """Whether it is a call of `f`, or says what one equals."""
    tree = parsed(code)
    return tree is not None and any(map(is_call, [tree, *ast.iter_child_nodes(tree)]))
