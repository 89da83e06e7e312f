"""Tiny hybrids with a byte-level BPE that has merges, because llama.cpp reads none without."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model

ROWS = 420
TOKENS = 400  # fewer than rows: an embedding is often padded

_REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    pattern = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _REST % digits)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# llama.cpp's name of a way to cut words, how the tokenizers library says it, and whether whole words are taken first.
PRE_TOKENIZERS: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        False,
    ),
    "qwen2": (_split(""), False),
    "llama-bpe": (_split("{1,3}"), True),
    "dbrx": (_split("{1,3}"), False),
}


def tokenizer(pre: str = "smollm") -> PreTrainedTokenizerFast:
    """A BPE trained on our licence, with the numbers from 0 to 199 beside it."""
    cut, ignore_merges = PRE_TOKENIZERS[pre]
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=list(tiny.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    backend.train_from_iterator([text, *(f"{number}  {number}\n\n" for number in range(200))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=tiny.PAD,
        bos_token=tiny.BOS,
        eos_token=tiny.END,
        chat_template=tiny.CHAT_TEMPLATE,
    )


def model(family: str = "granitemoehybrid", pre: str = "smollm", **settings: Any) -> Model:
    """A random hybrid of a family, whose layers 0 and 2 are Mamba-2."""
    network = tiny.build(family, vocab_size=ROWS, pad_token_id=0, bos_token_id=1, eos_token_id=3, **settings)
    return Model(network=network, tokenizer=tokenizer(pre), anatomy=anatomy_of(network), source=f"small {family}")


def save(folder: Path, family: str = "granitemoehybrid", pre: str = "smollm", **settings: Any) -> Model:
    """`model`, saved to `folder`, and returned."""
    built = model(family, pre, **settings)
    built.save(folder)
    return built
