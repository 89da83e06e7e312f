"""A model that reads other tokens is refused, and the message says which."""

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from radistill.errors import RadistillError
from radistill.models.loading import Model
from radistill.models.vocabularies import check_same_tokenizer


def with_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Model:
    model = tiny.model("llama", layers=1)
    return Model(network=model.network, tokenizer=tokenizer, anatomy=model.anatomy, source="other")


def test_the_same_tokenizer_passes_whatever_the_embedding_size_and_the_end_token() -> None:
    chat, base = tiny.model("llama", layers=1), tiny.tokenizer()
    base.eos_token = tiny.BOS
    padded = Model(
        network=tiny.build("qwen2", layers=1, vocab_size=320), tokenizer=base, anatomy=chat.anatomy, source="padded"
    )
    check_same_tokenizer(padded, chat)
    check_same_tokenizer(chat, padded)


def test_swapped_tokens_are_named() -> None:
    text = tiny.tokenizer().backend_tokenizer.to_str()
    assert '"A":32' in text.replace(" ", "")
    swapped = text.replace('"A":32,', '"A":33,').replace('"B":33,', '"B":32,')
    other = with_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped)))
    with pytest.raises(RadistillError, match=r"teacher other .* token 32 is 'B' in the teacher and 'A' in the student"):
        check_same_tokenizer(other, tiny.model("llama", layers=1))


def test_a_token_that_only_one_has_is_named() -> None:
    larger = tiny.tokenizer()
    larger.add_tokens(["<|extra|>"])
    small, large = tiny.model("llama", layers=1), with_tokenizer(larger)
    with pytest.raises(RadistillError, match=r"token 260 is '<\|extra\|>' in the teacher and missing in the student"):
        check_same_tokenizer(large, small)
    with pytest.raises(RadistillError, match=r"token 260 is missing in the teacher and '<\|extra\|>' in the student"):
        check_same_tokenizer(small, large)
