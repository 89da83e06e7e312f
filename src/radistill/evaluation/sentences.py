"""Plain sentences about nothing in particular: what fills a context where only its length matters."""

import random
from pathlib import Path

from radistill.models.loading import Model

SENTENCES = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()


def tokens_of_text(model: Model, count: int) -> list[int]:
    """The first `count` tokens of a text of these sentences, always in the same mixed order."""
    tokens: list[int] = []
    sentences = 64
    while len(tokens) < count:
        text = " ".join(random.Random(0).choices(SENTENCES, k=sentences))
        tokens = list(model.tokenizer(text, verbose=False)["input_ids"])
        sentences *= 2
    return tokens[:count]
