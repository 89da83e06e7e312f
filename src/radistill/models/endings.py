"""Where a response ends: what engines stop at, what a chat template ends a turn with, and what training has taught."""

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from radistill.models.loading import Model
from radistill.models.sequences import Document


def end_tokens(model: Model) -> frozenset[int]:
    """Tokens at which a response of `model` is finished: those of its generation config, as transformers has it.

    So what is generated and judged here is what users of the model will see.
    """
    found = model.network.generation_config.eos_token_id
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)


def turn_end_tokens(model: Model) -> frozenset[int]:
    """Tokens that end a response which is to be learnt: `end_tokens` and the end of a turn in the chat template."""
    end = end_of_turn(model.tokenizer)
    return end_tokens(model) | (frozenset() if end is None else {end})


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template ends an assistant's turn (`<|im_end|>` in ChatML).

    It is read off the template: the first special token that follows the content of an assistant's message, which is
    where two conversations that end with different ones are the same again. Without a
    template, or if the template ends a turn with ordinary text, it is the tokenizer's end token.
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    try:
        one, other = (_with_response(tokenizer, content) for content in ("0", "1"))
    except Exception:  # a template may refuse anything, with any error
        return tokenizer.eos_token_id
    same = next((count for count, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), 0)
    tail = one[len(one) - same :]
    special = _special_tokens(tokenizer)
    tokens = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return next((token for token in tokens if token in special), tokenizer.eos_token_id)


def _with_response(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    with suppress(Exception):
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        if content in text:
            return text
    # Templates of models that read images may take content in parts alone.
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    return str(tokenizer.apply_chat_template(parts, tokenize=False))


def learn_endings(student: Model, documents: Sequence[Document]) -> None:
    """Let `student` stop at the special tokens that its training documents end with.

    Engines differ in where they look, so config, generation config and tokenizer name the same: what was learnt, the
    most frequent first, then what the base stopped at. Documents that end with ordinary text change nothing.
    """
    special = _special_tokens(student.tokenizer)
    last = Counter(document.tokens[-1] for document in documents)
    learnt = [token for token, _ in last.most_common() if token in special]
    if not learnt:
        return
    ends = [*learnt, *sorted(end_tokens(student) - set(learnt))]
    value = ends[0] if len(ends) == 1 else ends
    student.network.generation_config.eos_token_id = value
    student.network.config.eos_token_id = value
    if student.tokenizer.eos_token_id not in learnt:
        student.tokenizer = copy.deepcopy(student.tokenizer)  # the base has the same
        student.tokenizer.eos_token = student.tokenizer.convert_ids_to_tokens(learnt[0])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {token for token, one in added if one.special}
