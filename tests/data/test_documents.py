"""Chat templates, response tokens, and that documents in a batch do not see each other."""

from typing import Any

import pytest
import torch

import tiny
from radistill.data.documents import prompt_tokens, response_tokens
from radistill.data.examples import Example
from radistill.errors import RadistillError
from radistill.models.sequences import Document, batches, collate

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Two and two?"}


def chat(*messages: dict[str, Any], response: str | None = "Four.") -> Example:
    return Example("a", messages=messages, response=response)


def decoded(tokens: list[int]) -> str:
    return tiny.tokenizer().decode(tokens)


def test_prompt_and_response_are_the_template_up_to_the_end_of_the_turn() -> None:
    tokenizer = tiny.tokenizer()
    prompt, response = prompt_tokens(chat(USER), tokenizer), response_tokens(chat(USER), tokenizer)
    assert decoded(prompt) == "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(response) == "Four.<|im_end|>"
    whole = tokenizer.apply_chat_template([USER, {"role": "assistant", "content": "Four."}], return_dict=False)
    assert prompt + response == whole[: len(prompt) + len(response)]


def test_an_empty_response_is_the_end_of_the_turn() -> None:
    assert response_tokens(chat(USER, response=""), tiny.tokenizer()) == [259]


def test_the_system_prompt_is_added_only_where_there_is_none() -> None:
    tokenizer = tiny.tokenizer()
    assert decoded(prompt_tokens(chat(USER), tokenizer, "Be kind.")).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>"
    )
    own = prompt_tokens(chat(SYSTEM, USER), tokenizer)
    assert prompt_tokens(chat(SYSTEM, USER), tokenizer, "Be kind.") == own
    assert response_tokens(chat(USER), tokenizer, "Be kind.") == response_tokens(chat(USER), tokenizer)


def test_earlier_turns_belong_to_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    example = chat(USER, {"role": "assistant", "content": "Five."}, {"role": "user", "content": "No."})
    assert "Five.<|im_end|>" in decoded(prompt_tokens(example, tokenizer))
    assert decoded(response_tokens(example, tokenizer)) == "Four.<|im_end|>"


MESSAGES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"


@pytest.mark.parametrize(
    ("template", "response"),
    [
        # No generation prompt at all: the header is the template's, not the prompt's.
        (MESSAGES + "<|im_end|>\n{% endfor %}", "<|im_start|>assistant\nFour.<|im_end|>"),
        # A turn that ends with nothing: the tokenizer's end token is put there.
        (
            MESSAGES + "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "Four.\n<|im_end|>",
        ),
        # Another end token than the tokenizer's.
        (
            MESSAGES + "<|endoftext|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "Four.<|endoftext|>",
        ),
        # A generation prompt that the rendered conversation does not contain, as in models that may think.
        (
            MESSAGES + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}",
            "Four.<|im_end|>",
        ),
    ],
)
def test_other_templates(template: str, response: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    assert tokenizer.decode(response_tokens(chat(USER), tokenizer)) == response


def test_special_tokens_are_not_added_twice() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "<|bos|>" + tiny.CHAT_TEMPLATE
    assert prompt_tokens(chat(USER), tokenizer).count(257) == 1


def test_a_text_is_taken_as_it_is() -> None:
    text = "Ärger <b>\n"
    assert decoded(prompt_tokens(Example("a", text=text), tiny.tokenizer())) == text


def test_without_a_chat_template() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(RadistillError, match=r"a: this model's tokenizer has no chat template.*use rows with text"):
        prompt_tokens(chat(USER), tokenizer)
    assert prompt_tokens(Example("a", text="fine"), tokenizer)


@pytest.mark.parametrize("template", ["{{ raise_exception('System role not supported') }}", "{% for %}", "{{ x.y.z }}"])
def test_a_template_that_refuses(template: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(RadistillError, match=r"a: the chat template refuses this conversation: .+"):
        prompt_tokens(chat(SYSTEM, USER), tokenizer)


LENGTHS = (2, 3, 17, 64, 65, 200, 5)


@pytest.mark.parametrize("family", ["granitemoehybrid", "llama"])
def test_documents_do_not_leak_into_each_other(family: str) -> None:
    """Logits within a batch are those of the document alone, whatever stands in the other rows and the padding.

    The hybrid has attention and Mamba-2 layers. The lengths lie below, at and above its convolution's width (4) and
    its scan's chunks (16).
    """
    network = tiny.build(family)
    generator = torch.Generator().manual_seed(0)
    documents = [
        Document(str(n), tuple(torch.randint(256, (length,), generator=generator).tolist()), 1)
        for n, length in enumerate(LENGTHS)
    ]
    with torch.no_grad():
        alone = {
            document.id: network(input_ids=torch.tensor([document.tokens]), use_cache=False).logits[0]
            for document in documents
        }
        seen = 0
        for pad in (256, 0):
            for group in [documents, documents[::-1], *batches(documents, 150)]:
                batch = collate(group, pad)
                logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
                for row, document in enumerate(group):
                    length = len(document.tokens)
                    torch.testing.assert_close(logits[row, :length], alone[document.id], atol=1e-5, rtol=1e-5)
                    assert batch.response_mask[row].sum() == length - 1
                    seen += 1
        assert seen == 2 * 3 * len(documents)


def test_documents_in_one_row_would_leak() -> None:
    """The negative control: behind another document in the same row, attention and state change the logits."""
    for network in (tiny.build("granitemoehybrid"), tiny.build("llama")):
        first, second = list(range(20)), list(range(100, 120))
        with torch.no_grad():
            alone = network(input_ids=torch.tensor([second]), use_cache=False).logits[0]
            behind = network(input_ids=torch.tensor([first + second]), use_cache=False).logits[0, 20:]
        assert (alone - behind).abs().max() > 0.1
