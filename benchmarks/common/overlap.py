"""How much of an evaluation's text stands in the training text: shared n-grams of words and signs."""

import re
from collections.abc import Iterable

_UNIT = re.compile(r"\w+|[^\w\s]")


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """All runs of `n` words or signs, in lower case."""
    units = _UNIT.findall(text.lower())
    return {tuple(units[start : start + n]) for start in range(len(units) - n + 1)}


def overlap(training: Iterable[str], evaluated: Iterable[str], n: int = 13) -> dict[str, int]:
    """How many of the evaluated texts share at least one n-gram with the training texts.

    Returns:
        `n`, the number of `texts`, how many are `shared`, and how many are `too_short` to have an n-gram at all.
    """
    known = set[tuple[str, ...]]().union(*(ngrams(text, n) for text in training))
    grams = [ngrams(text, n) for text in evaluated]
    return {
        "n": n,
        "texts": len(grams),
        "shared": sum(not known.isdisjoint(each) for each in grams),
        "too_short": sum(not each for each in grams),
    }
