"""Chat templates, response tokens, and that documents in a batch do not see each other."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from radistill.data import documents
from radistill.data.documents import prompt_tokens, response_tokens, with_kept_date
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
    prompt, response = prompt_tokens(chat(USER), tokenizer), response_tokens(chat(USER), tokenizer).tokens
    assert decoded(prompt) == "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(response) == "Four.<|im_end|>"
    whole = tokenizer.apply_chat_template([USER, {"role": "assistant", "content": "Four."}], return_dict=False)
    assert prompt + response == whole[: len(prompt) + len(response)]


def test_an_empty_response_is_the_end_of_the_turn() -> None:
    assert response_tokens(chat(USER, response=""), tiny.tokenizer()).tokens == [259]


def test_the_system_prompt_is_added_only_where_there_is_none() -> None:
    tokenizer = tiny.tokenizer()
    assert decoded(prompt_tokens(chat(USER), tokenizer, "Be kind.")).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>"
    )
    own = prompt_tokens(chat(SYSTEM, USER), tokenizer)
    assert prompt_tokens(chat(SYSTEM, USER), tokenizer, "Be kind.") == own
    assert response_tokens(chat(USER), tokenizer, "Be kind.").tokens == response_tokens(chat(USER), tokenizer).tokens


def test_earlier_turns_belong_to_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    example = chat(USER, {"role": "assistant", "content": "Five."}, {"role": "user", "content": "No."})
    assert "Five.<|im_end|>" in decoded(prompt_tokens(example, tokenizer))
    assert decoded(response_tokens(example, tokenizer).tokens) == "Four.<|im_end|>"


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
    ],
)
def test_other_templates(template: str, response: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    assert tokenizer.decode(response_tokens(chat(USER), tokenizer).tokens) == response


def both(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return prompt_tokens(example, tokenizer) + response_tokens(example, tokenizer).tokens


WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = (
    "{% for t in tools or [] %}[{{ t['function']['name'] }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call>'


def templated(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_tools_calls_and_reasoning_are_what_the_template_makes_of_them() -> None:
    tokenizer = templated(TOOLS)
    thought: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [WEATHER], "reasoning_content": "Ask."}
    example = Example(
        "a",
        messages=(USER, thought, {"role": "tool", "content": "12 C", "tool_call_id": "1"}),
        tools=(WEATHER,),
        response="Twelve.",
        response_fields={"reasoning_content": "Read it off.", "tool_calls": [WEATHER]},
    )
    # What an earlier turn was thought up with is the template's to leave out, and says so in its own words.
    assert decoded(prompt_tokens(example, tokenizer)) == (
        f"[weather]<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n{CALL}<|im_end|>\n"
        "<|im_start|>tool\n12 C<|im_end|>\n<|im_start|>assistant\n"
    )
    learnt = response_tokens(example, tokenizer)
    assert decoded(learnt.tokens) == f"<think>Read it off.</think>Twelve.{CALL}<|im_end|>"
    assert not learnt.shortened


@pytest.mark.parametrize(
    ("example", "field"),
    [
        (Example("a", messages=(USER,), response="", response_fields={"tool_calls": [WEATHER]}), "the response's tool"),
        (
            Example("a", messages=(USER,), response="4", response_fields={"reasoning_content": "2+2"}),
            "the response's r",
        ),
        (Example("a", messages=(USER,), response="4", response_fields={"refusal": "No."}), "the response's refusal"),
        (Example("a", messages=({**USER, "images": ["x.png"]},), response="4"), r"messages\[0\]\.images"),
        (Example("a", messages=(USER,), tools=(WEATHER,), response="4"), "tools"),
    ],
)
def test_what_the_template_leaves_out_is_refused_by_field(example: Example, field: str) -> None:
    with pytest.raises(RadistillError, match=f"^a: the chat template leaves out {field}"):
        both(example, tiny.tokenizer())


def test_a_turn_that_the_template_leaves_out_is_refused() -> None:
    user_only = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RadistillError, match=r"leaves out messages\[0\]\.content"):
        prompt_tokens(chat(SYSTEM, USER), templated(user_only))
    with pytest.raises(RadistillError, match=r"leaves out data\.system"):
        prompt_tokens(chat(USER), templated(user_only), "Be kind.")
    with pytest.raises(RadistillError, match="leaves out the response's content"):
        response_tokens(chat(USER), templated(user_only))
    # A call takes the place of what is said besides, even where the words stand in the call as well.
    either = TOOLS.replace("{{ m['content'] }}", "{% if not m.tool_calls %}{{ m['content'] }}{% endif %}")
    example = Example("a", messages=(USER,), response="Oslo", response_fields={"tool_calls": [WEATHER]})
    with pytest.raises(RadistillError, match="leaves out the response's content"):
        response_tokens(example, templated(either))


def test_a_turn_is_left_out_even_where_its_words_stand_elsewhere() -> None:
    spoken = "{% for m in messages if m['role'] in ('user', 'assistant') %}" + MESSAGES.partition("%}")[2]
    tokenizer = templated(
        spoken + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for content in ("user", "Two", USER["content"]):
        with pytest.raises(RadistillError, match=r"leaves out messages\[0\]\.content"):
            prompt_tokens(chat({"role": "system", "content": content}, USER), tokenizer)
        with pytest.raises(RadistillError, match=r"leaves out messages\[1\]\.content"):
            prompt_tokens(chat(USER, {"role": "tool", "content": content}), tokenizer)
    assert decoded(prompt_tokens(chat(USER, USER), tokenizer)).count("Two and two?") == 2


def test_a_template_that_looks_at_what_is_said_is_asked_turn_by_turn() -> None:
    looks = "{% if messages[0]['content'] == 'Be brief.' %}" + tiny.CHAT_TEMPLATE + "{% else %}{{ 1 // 0 }}{% endif %}"
    assert "Two and two?" in decoded(prompt_tokens(chat(SYSTEM, USER), templated(looks)))


OPENING = (
    "{% for m in messages %}{% set said = m['content'].split('</think>')[-1].replace('  ', ' ') if"
    " m['role'] == 'assistant' else m['content'] %}<|im_start|>{{ m['role'] }}\n{{ said }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize("response", ["<think>\nI add.\n</think>\n\n4", "I add.\n</think>\n\n4"])
def test_a_tag_that_the_prompt_opens_is_there_once(response: str) -> None:
    tokenizer = templated(OPENING)
    example = chat(USER, response=response)
    assert decoded(prompt_tokens(example, tokenizer)).endswith("<|im_start|>assistant\n<think>\n")
    assert decoded(response_tokens(example, tokenizer).tokens) == "I add.\n</think>\n\n4<|im_end|>"


@pytest.mark.parametrize("tag", ["<think>", "[THINK]"])
def test_a_tag_of_any_kind_is_there_once(tag: str) -> None:
    tokenizer, close = templated(OPENING.replace("<think>", tag)), f"{tag[0]}/{tag[1:]}"
    found = response_tokens(chat(USER, response=f"{tag}\nI add.{close}4"), tokenizer)
    assert (decoded(found.tokens), found.shortened) == (f"I add.{close}4<|im_end|>", False)


def test_a_tag_that_the_template_writes_as_well_is_not_missed() -> None:
    whole = OPENING.replace(".split('</think>')[-1]", "")
    found = response_tokens(chat(USER, response="<think>\nI add.\n</think>4"), templated(whole))
    assert (decoded(found.tokens), found.shortened) == ("I add.\n</think>4<|im_end|>", False)


def test_a_response_that_opens_what_the_prompt_has_closed_is_refused() -> None:
    tokenizer = templated(OPENING.replace("<think>\n{% endif", "<think>\n\n</think>\n\n{% endif"))
    assert decoded(response_tokens(chat(USER, response="4"), tokenizer).tokens) == "4<|im_end|>"
    with pytest.raises(RadistillError, match="prompt closes <think>, and the response opens it again"):
        response_tokens(chat(USER, response="<think>\nI add.\n</think>4"), tokenizer)


def test_a_response_that_does_not_close_what_the_prompt_opens_is_refused() -> None:
    with pytest.raises(RadistillError, match="a: the chat template's prompt opens <think>, and the response"):
        response_tokens(chat(USER), templated(OPENING))
    fields = {"reasoning_content": "I add."}
    with pytest.raises(RadistillError, match="leaves out the response's reasoning_content"):
        response_tokens(Example("a", messages=(USER,), response="4", response_fields=fields), templated(OPENING))


@pytest.mark.parametrize(
    ("response", "learnt", "shortened"),
    [
        ("<think>I add.</think>4", "4<|im_end|>", True),
        ("4", "4<|im_end|>", False),
        (" 4\n", " 4\n<|im_end|>", False),
        ("4  5", "4 5<|im_end|>", False),
    ],
)
def test_a_response_that_the_template_shortens_says_so(response: str, learnt: str, shortened: bool) -> None:
    found = response_tokens(chat(USER, response=response), templated(OPENING.replace("<think>\n{% endif", "{% endif")))
    assert (decoded(found.tokens), found.shortened) == (learnt, shortened)


class Clock(datetime):
    """A day that the test sets."""

    today_is = 1

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        return cls(2026, 3, cls.today_is, 12)


@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_prints_the_date_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    template = (
        "\n{% set asked = '%-d. %B' %}Today is {{ strftime_now('%d %b %Y') }}, {{ strftime_now( format=\"%Y\" ) }},"
        " {{ strftime_now(asked) }}, 100 {{ strftime_now('%%') }}.\n" + tiny.CHAT_TEMPLATE
    )
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": template, "tool_use": template} if named else template
    monkeypatch.setattr(documents, "datetime", Clock)
    first = prompt_tokens(chat(USER), with_kept_date(tokenizer, tmp_path))
    monkeypatch.setattr(Clock, "today_is", 2)
    assert prompt_tokens(chat(USER), with_kept_date(tokenizer, tmp_path)) == first
    assert decoded(first).startswith("\nToday is 01 Mar 2026, 2026, 1. March, 100 %.\n")
    assert decoded(prompt_tokens(chat(USER), with_kept_date(tokenizer, tmp_path / "other"))).startswith("\nToday is 02")
    assert "strftime_now" in str(tokenizer.chat_template)
    (tmp_path / "date.json").write_text('{"date": "yesterday"}')
    with pytest.raises(RadistillError, match=r"date\.json: holds no date"):
        with_kept_date(tokenizer, tmp_path)


def test_a_template_without_a_date_keeps_nothing(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    assert with_kept_date(tokenizer, tmp_path) is tokenizer
    assert not list(tmp_path.iterdir())


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
