"""Long texts in which a number has to be found again: what attention layers are kept for, and short texts do not show.

Each ends in a question to one of many facts that it states, and the response is the number. The templates are not those
of the task `recall`, so that a model is not fitted to what it is judged by.
"""

import random
from bisect import bisect_left

from transformers import PreTrainedTokenizerBase

from radistill.data.examples import Example
from radistill.data.records import Record
from radistill.data.settings import DataSettings, RetrievalSettings
from radistill.errors import RadistillError
from radistill.models.sequences import Document

_TRAINING_QUESTIONS = 8
"""To one text that is trained on: reading a long text costs much, and a number is only a few tokens of response."""

_PEOPLE = (
    "Agnes", "Boris", "Clara", "Dmitri", "Edith", "Farid", "Greta", "Hamid", "Ingrid", "Jonas", "Keiko", "Lars",
    "Marta", "Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Stefan", "Tamara", "Umberto", "Vera", "Wanda", "Yusuf",
)  # fmt: skip
_TOWNS = (
    "Bergen", "Cadiz", "Dover", "Essen", "Fargo", "Genoa", "Halifax", "Izmir", "Jaipur", "Kyoto", "Lagos", "Malmo",
    "Nantes", "Osaka", "Porto", "Quito", "Riga", "Salem", "Turin", "Utrecht", "Verona", "Warsaw", "Yerevan", "Zagreb",
)  # fmt: skip
_DOES = ("looked for", "asked about", "forgot", "bought", "described", "repaired", "painted", "carried home")
_WHAT = ("a ladder", "the weather", "an old map", "two umbrellas", "the timetable", "a brass bell", "some bread")


def check_contexts(settings: DataSettings, context: int | None) -> None:
    """Check that the texts, if there are any, are no longer than a document of a model of this context may be.

    Raises:
        RadistillError: naming the length.
    """
    if settings.retrieval is None:
        return
    longest, most = max(settings.retrieval.contexts), settings.longest(context)
    if longest > most:
        raise RadistillError(
            f"data.retrieval.contexts: {longest} tokens are more than the {most} of data.max_length or the model's "
            "context"
        )


def retrieval_records(
    tokenizer: PreTrainedTokenizerBase, settings: RetrievalSettings, split: str, seed: int
) -> list[Record]:
    """The texts of a split, as many of each length as `settings` says.

    Args:
        tokenizer: sizes the texts; text and response together have at most as many tokens as their length says.
        settings: lengths and counts.
        split: train, calibration or heldout; no two have a text in common.
        seed: decides what the texts say.

    Raises:
        RadistillError: for a length that is so short that no text fits, or longer than all that can be said.
    """
    questions = _TRAINING_QUESTIONS if split == "train" else 1
    return [
        _record(tokenizer, length, f"{split} {seed} {length} {number}", questions, ledger=number % 2 == 0)
        for length in settings.contexts
        for number in range(getattr(settings, split))
    ]


def _record(tokenizer: PreTrainedTokenizerBase, length: int, name: str, questions: int, ledger: bool) -> Record:
    """The longest text of its kind: a ledger, where every line is asked about, or a few entries among other lines."""
    random_ = random.Random(name)
    keys = [f"{person} of {town}" for person in _PEOPLE for town in _TOWNS]
    random_.shuffle(keys)
    numbers = [str(random_.randrange(10_000, 100_000)) for _ in keys]
    others = [f"{key.replace(' of ', ' from ')} {random_.choice(_DOES)} {random_.choice(_WHAT)}." for key in keys]
    draw = random_.random()

    def written(size: int) -> tuple[str, str]:
        """Text and response, of `size` lines and the questions."""
        facts = size if ledger else min(size, questions)
        lines = [f"{key} was paid {number}." for key, number in zip(keys[:facts], numbers, strict=False)]
        lines += others[facts:size]
        random.Random(draw).shuffle(lines)
        asked = [f"{keys[at]} was paid {numbers[at]}." for at in random.Random(draw).sample(range(facts), facts)]
        whole = "\n".join([*lines, "", *asked[:questions]])
        start = whole.index(asked[0], len("\n".join(lines))) + asked[0].rindex(" ")
        return whole[:start], whole[start:-1]

    def document(size: int) -> Document:
        prompt, response = written(size)
        before, tokens = _tokens(tokenizer, prompt), _tokens(tokenizer, prompt + response)
        while tokens[-1] in tokenizer.all_special_ids:  # some tokenizers end every text
            tokens.pop()
        # Where a token spans the border, the response begins with it.
        start = next((at for at, (one, other) in enumerate(zip(before, tokens)) if one != other), len(before))  # noqa: B905
        return Document(f"retrieval {name}", tuple(tokens), start)

    # A line has at least four tokens in any tokenizer.
    sizes = range(1, min(len(keys), length // 4) + 1)
    size = bisect_left(sizes, True, key=lambda size: len(document(size).tokens) > length)
    if size == 0:
        raise RadistillError(f"data.retrieval.contexts: no text fits into {length} tokens; name longer ones")
    if size == len(keys):
        raise RadistillError(f"data.retrieval.contexts: {length} tokens hold more than {size} lines; name shorter ones")
    found, (prompt, response) = document(size), written(size)
    return Record(Example(found.id, text=prompt, response=response), found)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])
