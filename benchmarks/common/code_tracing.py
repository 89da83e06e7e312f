"""Code-tracing exercises: small Python functions that a generator makes and runs, so that the truth is known.

None comes from a data set. A function changes a text or a list in a few steps and returns what became of it, or a
figure of it; the questions are those of CRUXEval's two directions.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from radistill.data.examples import Example
from radistill.evaluation.tasks.cruxeval import INPUT_PROMPT, OUTPUT_PROMPT

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
Step = Callable[[random.Random, str], list[str]]


def _text_steps(pick: random.Random, name: str) -> list[str]:
    one, other = pick.sample(_LETTERS, 2)
    few = "".join(pick.sample(_LETTERS, 3))
    start, stop = pick.randint(0, 2), pick.randint(3, 7)
    return pick.choice(
        [
            [f"{name} = {name}.replace({one!r}, {other!r})"],
            [f"{name} = {name}[::-1]"],
            [f"{name} = {name}[{start}:{stop}] + {name}[{stop}:].upper()"],
            [f"{name} = ''.join(c for c in {name} if c not in {few!r})"],
            [f"{name} = {name}.swapcase() + {one!r} * {pick.randint(1, 3)}"],
            [
                f"if {name}.startswith({one!r}):",
                f"    {name} = {name}[1:]",
                "else:",
                f"    {name} = {other!r} + {name}",
            ],
            [f"for letter in {few!r}:", f"    {name} = {name} + str({name}.count(letter))"],
            [f"{name} = {name}.strip({few!r}).title()"],
        ]
    )


def _list_steps(pick: random.Random, name: str) -> list[str]:
    small, large = pick.randint(1, 4), pick.randint(5, 12)
    return pick.choice(
        [
            [f"{name} = sorted({name})"],
            [f"{name} = {name}[::-1] + [len({name})]"],
            [f"{name} = [n for n in {name} if n > {small}]"],
            [f"{name} = [n * {small} if n % 2 else n for n in {name}]"],
            [f"{name} = {name}[{small}:] + {name}[:{small}]"],
            [f"if len({name}) > {large // 2}:", f"    {name}.pop()", "else:", f"    {name}.append({large})"],
            ["total = 0", f"for i, n in enumerate({name}):", "    total += n", f"    {name}[i] = total"],
            [f"if {large} not in {name}:", f"    {name}.insert(0, {large})"],
        ]
    )


_ENDS = {
    "text": [
        "{0}",
        "len({0})",
        "{0}.split('a')",
        "sorted(set({0}))",
        "({0}[:2], {0}[-2:])",
        "{{c: {0}.count(c) for c in {0}}}",
    ],
    "list": [
        "{0}",
        "sum({0})",
        "len({0})",
        "[min({0} or [0]), max({0} or [0])]",
        "{{n: {0}.count(n) for n in {0}}}",
        "tuple({0})",
    ],
}
_NAMES = {"text": ["text", "word", "s", "line", "value"], "list": ["numbers", "items", "nums", "array", "values"]}


def exercises(seed: int) -> Iterator[Example]:
    """Endless exercises, no function twice; each has a verifier with its `code` and the `answer`, a literal."""
    pick = random.Random(f"code tracing {seed}")
    seen: set[str] = set()
    while True:
        kind = pick.choice(["text", "list"])
        name = pick.choice(_NAMES[kind])
        steps: Step = _text_steps if kind == "text" else _list_steps
        body = [line for _ in range(pick.randint(2, 4)) for line in steps(pick, name)]
        lines = [
            f"def f({name}):",
            *(f"    {line}" for line in body),
            f"    return {pick.choice(_ENDS[kind]).format(name)}",
        ]
        code = "\n".join(lines)
        argument = _argument(pick, kind)
        if code in seen:
            continue
        seen.add(code)
        answer = repr(_run(code, argument))
        direction, prompt = pick.choice([("output", OUTPUT_PROMPT), ("input", INPUT_PROMPT)])
        asked = prompt.format(code=code, input=repr(argument), output=answer)
        verifier = {"kind": "code", "direction": direction, "code": code, "input": repr(argument), "answer": answer}
        yield Example.of_user(f"tracing-{len(seen)}", asked, verifier=verifier)


def _argument(pick: random.Random, kind: str) -> str | list[int]:
    if kind == "text":
        return "".join(pick.choices(_LETTERS[:12] + " ", k=pick.randint(4, 10)))
    return [pick.randint(0, 12) for _ in range(pick.randint(3, 7))]


def _run(code: str, argument: Any) -> Any:
    """What the function returns. Only the templates above get here, so no sandbox is needed."""
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["f"](list(argument) if isinstance(argument, list) else argument)
