"""Where responses end: as engines have it, by the template, and after training."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from radistill.distillation.distill import finetune
from radistill.distillation.settings import FinetuneSettings
from radistill.models.endings import end_of_turn, end_tokens, learn_endings, turn_end_tokens
from radistill.models.loading import Model, load
from radistill.models.sequences import Document


def test_end_of_turn_is_read_off_the_template() -> None:
    tokenizer = tiny.tokenizer()
    assert end_of_turn(tokenizer) == 259
    tokenizer.eos_token = tiny.PAD
    assert end_of_turn(tokenizer) == 259
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == 256
    changed = "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = changed
    assert end_of_turn(tokenizer) == 259
    tokenizer.chat_template = changed.replace("m['content'] | upper", "m['role']")
    assert end_of_turn(tokenizer) == 256
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(tokenizer) == 256
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == 256


@pytest.mark.parametrize(("named", "stops"), [(7, {7}), ([7, 8], {7, 8}), (None, set())])
def test_generation_ends_where_transformers_ends_it(named: int | list[int] | None, stops: set[int]) -> None:
    model = tiny.model("llama")
    model.network.generation_config.eos_token_id = named
    assert end_tokens(model) == stops
    assert turn_end_tokens(model) == stops | {259}
    prompt = torch.tensor([[5, 6]])
    for token in (7, 8, 256, 259):
        forced = model.network.generate(
            prompt, max_new_tokens=3, prefix_allowed_tokens_fn=lambda row, ids, token=token: [token]
        )
        assert (forced.shape[1] == 3) == (token in stops)


def base(eos: int | None = 256) -> Model:
    """A model whose end token is not the one that ends a turn."""
    model = tiny.model("llama")
    model.tokenizer.eos_token = tiny.PAD
    model.network.generation_config.eos_token_id = eos
    model.network.config.eos_token_id = eos
    return model


def documents(*lasts: int) -> list[Document]:
    return [Document(str(number), (1, 2, 3, last), 2) for number, last in enumerate(lasts)]


@pytest.mark.parametrize(
    ("lasts", "ends", "eos"),
    [
        ([259, 259, 65], [259, 256], 259),
        ([259, 258, 259], [259, 258, 256], 259),
        ([256, 256], 256, 256),
        ([259, 259, 256], [259, 256], 256),
        ([65, 66], 256, 256),
    ],
)
def test_a_student_learns_what_its_documents_end_with(lasts: list[int], ends: int | list[int], eos: int) -> None:
    student = base()
    before = student.tokenizer
    learn_endings(student, documents(*lasts))
    assert student.network.generation_config.eos_token_id == student.network.config.eos_token_id == ends
    assert student.tokenizer.eos_token_id == eos
    assert before.eos_token_id == 256  # the base has the same tokenizer, and keeps it


def test_a_base_without_an_end_token() -> None:
    student = base(None)
    learn_endings(student, documents(65))
    assert end_tokens(student) == set()
    learn_endings(student, documents(259))
    assert end_tokens(student) == {259}


def test_training_teaches_the_end_and_the_files_say_so(tmp_path: Path) -> None:
    student = base()
    names = {name for name, _ in student.network.named_parameters()}
    settings = FinetuneSettings(steps=1, tokens_per_batch=64)
    finetune(student, base(), documents(259, 259), documents(259), settings, new_parameters=names)
    student.save(tmp_path / "student")
    assert end_tokens(load(tmp_path / "student")) == {259, 256}
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert network.generation_config.eos_token_id == network.config.eos_token_id == [259, 256]
    assert AutoTokenizer.from_pretrained(tmp_path / "student").eos_token_id == 259
