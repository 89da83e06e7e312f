"""From examples to tokens: the chat template, and where the response begins."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.models.checkpoint import one_line
from radistill.models.generation import end_of_turn


def prompt_tokens(example: Example, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> list[int]:
    """Tokens of a conversation up to the point where the assistant's response begins; of a plain text, all of them.

    A text has the special tokens that the tokenizer itself adds; in a conversation the template writes them.

    Raises:
        RadistillError: if the tokenizer has no chat template, or its template refuses the conversation.
    """
    if example.text is not None:
        return list(tokenizer(example.text, verbose=False)["input_ids"])
    return _tokens(tokenizer, _render(tokenizer, _conversation(example, system), example.id, prompt=True))


def response_tokens(example: Example, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> list[int]:
    """Tokens of the response that the data gives, to follow `prompt_tokens`; the last one ends the turn.

    Prompt and response together are the template's rendering of the whole conversation, up to the end of the turn.
    Where they cannot be, because the template renders earlier turns otherwise or a token spans the border, the
    response is tokenised by itself.
    """
    conversation = _conversation(example, system)
    answered = [*conversation, {"role": "assistant", "content": example.response}]
    prompt = _render(tokenizer, conversation, example.id, prompt=True)
    whole = _render(tokenizer, answered, example.id, prompt=False)
    before = _tokens(tokenizer, prompt)
    tokens = _tokens(tokenizer, whole)
    if tokens[: len(before)] == before:
        response = tokens[len(before) :]
    elif whole.startswith(prompt):
        response = _tokens(tokenizer, whole[len(prompt) :])
    else:
        response = _tokens(tokenizer, example.response or "")

    end = end_of_turn(tokenizer)
    if end is None:
        return response
    if end in response:
        # What a template writes after the end of the turn, such as a line break, is not the model's to write.
        last = len(response) - 1 - response[::-1].index(end)
        return response[: last + 1]
    return [*response, end]


def _conversation(example: Example, system: str | None) -> list[dict[str, Any]]:
    messages = list(example.messages or ())
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], id: str, prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise RadistillError(
            f"{id}: this model's tokenizer has no chat template, which messages and prompts need; "
            "use rows with text, or put a chat_template.jinja into the model's folder"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a template may raise anything: jinja's errors, its own refusals, a TypeError
        raise RadistillError(f"{id}: the chat template refuses this conversation: {one_line(error)}") from error


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template has already written the special tokens, such as the one for the beginning.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
