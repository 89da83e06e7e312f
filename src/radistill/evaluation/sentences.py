"""Plain sentences about nothing in particular: what fills a context where only its length matters."""

import random

from radistill.models.loading import Model

SENTENCES = (
    "The market opens early, and by noon most of the stalls are empty.",
    "Rain had fallen all night, so the path along the river was soft.",
    "A cat slept on the wall and did not look up when the bus went by.",
    "In the library someone was reading a newspaper from the week before.",
    "The baker said that bread is best on the second day.",
    "Two children flew a kite until the wind changed.",
    "The old road leads over the hill and down to the harbour.",
    "Nobody could remember when the fountain had last been cleaned.",
    "On the far side of the square a band was tuning its instruments.",
    "The train was late again, but the passengers did not seem to mind.",
    "She closed the shutters, lit the stove and began to write.",
    "Swallows had built their nest under the roof of the station.",
)


def tokens_of_text(model: Model, count: int) -> list[int]:
    """The first `count` tokens of a text of these sentences, always in the same mixed order."""
    tokens: list[int] = []
    sentences = 64
    while len(tokens) < count:
        text = " ".join(random.Random(0).choices(SENTENCES, k=sentences))
        tokens = list(model.tokenizer(text, verbose=False)["input_ids"])
        sentences *= 2
    return tokens[:count]
