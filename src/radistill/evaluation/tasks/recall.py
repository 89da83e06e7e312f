"""`recall`: finding what was said earlier, over growing contexts; what attention layers are kept for.

Two kinds of text, of the same lengths. `key-value`: a list of names with numbers, ending in one of the names again;
every line is a candidate, so the whole list must be remembered. `needle`: one such number in a text about other things.
`recall` asks both, `recall-key-value` and `recall-needle` one of them.
Both are plain texts to go on with, so that a model needs no chat template and no instructions to know what is asked,
and numbers that never repeat, so that a guess is worth nothing (one in 9,000).
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.evaluation.final_answer import extract_answer
from radistill.evaluation.sentences import SENTENCES
from radistill.evaluation.tasks.interface import Generated, TaskSettings, Verdict
from radistill.models.loading import Model

CONTEXTS = (128, 256, 512, 1024, 2048)
_EXAMPLES = 20
_ANSWER_TOKENS = 12

_COLOURS = ("amber", "black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
_THINGS = (
    "apple", "boat", "bridge", "candle", "castle", "chair", "clock", "coat", "door", "drum", "engine", "field", "flag",
    "flower", "fox", "garden", "glass", "hammer", "hat", "horse", "house", "island", "kettle", "key", "lamp", "leaf",
    "letter", "mirror", "mountain", "needle", "piano", "pocket", "river", "ship", "shoe", "stone", "table", "tower",
    "train", "tree", "wagon", "window",
)  # fmt: skip
_NAMES = [
    f"{kind} {colour} {thing}"
    for kind in ("small", "large", "old", "new", "round", "heavy")
    for colour in _COLOURS
    for thing in _THINGS
]


def _key_value(names: list[str], numbers: list[int], size: int, depth: float) -> tuple[str, int]:
    asked = int(depth * size)
    lines = [f"{name}: {number}\n" for name, number in zip(names[:size], numbers[:size], strict=True)]
    return f"{''.join(lines)}{names[asked]}:", numbers[asked]


def _needle(names: list[str], numbers: list[int], size: int, depth: float) -> tuple[str, int]:
    # The numbers, which are in no order, also choose the sentences.
    sentences = [SENTENCES[numbers[index % len(numbers)] % len(SENTENCES)] for index in range(1, size + 1)]
    sentences.insert(int(depth * (size + 1)), f"The number of the {names[0]} is {numbers[0]}.")
    return f"{' '.join(sentences)} The number of the {names[0]} is", numbers[0]


_KINDS: dict[str, Callable[[list[str], list[int], int, float], tuple[str, int]]] = {
    "key-value": _key_value,
    "needle": _needle,
}


def _read(kinds: Sequence[str], model: Model, settings: TaskSettings) -> list[Example]:
    longest = model.context_length
    contexts = settings.contexts or tuple(c for c in CONTEXTS if longest is None or c + _ANSWER_TOKENS <= longest)
    beyond = [c for c in contexts if longest is not None and c + _ANSWER_TOKENS > longest]
    if beyond or not contexts:
        raise RadistillError(
            f"recall: a context of {max(beyond or CONTEXTS)} tokens and an answer are beyond the {longest} tokens of "
            "this model; name shorter ones with --contexts"
        )
    return [
        _example(model, kind, context, number, settings.seed)
        for context in contexts
        for kind in kinds
        for number in range(settings.limit or _EXAMPLES)
    ]


def _example(model: Model, kind: str, context: int, number: int, seed: int) -> Example:
    """The longest text of its kind within `context` tokens; what is asked for lies anywhere in it."""
    random_ = random.Random(f"{seed} {kind} {context} {number}")
    names = random_.sample(_NAMES, len(_NAMES))
    numbers = random_.sample(range(1000, 10000), len(names))
    depth = random_.random()

    def fits(size: int) -> bool:
        text, _ = _KINDS[kind](names, numbers, size, depth)
        return len(model.tokenizer(text, verbose=False)["input_ids"]) <= context

    # A name or a sentence has at least four tokens, so the largest size that fits lies in low..high.
    low, high = 1, min(len(names), 1 + context // 4)
    if not fits(low):
        raise RadistillError(f"recall: no {kind} text fits into {context} tokens; choose longer --contexts")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low == len(names):
        raise RadistillError(f"recall: {context} tokens hold more than {len(names)} names; choose shorter --contexts")
    text, answer = _KINDS[kind](names, numbers, low, depth)
    group = f"{kind} {context:,}"
    return Example(f"{group} {number}", text=text, verifier={"kind": "number", "answer": str(answer), "group": group})


def _judge(example: Example, response: str) -> Verdict:
    assert example.verifier is not None
    answer = extract_answer(response)
    return Verdict(answer == example.verifier["answer"], answer)


def _task(name: str, kinds: Sequence[str]) -> Generated:
    # After the number a model without turns goes on: with the list, or with another sentence.
    stops = ("\n", ".")
    read = partial(_read, kinds)
    return Generated(name, read, _judge, _ANSWER_TOKENS, is_short=True, stops=stops, has_contexts=True)


TASKS = (_task("recall", list(_KINDS)), *(_task(f"recall-{kind}", [kind]) for kind in _KINDS))
