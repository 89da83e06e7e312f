"""What is read from a GGUF file, against llama.cpp on the same file: token ids of hard texts, and greedy tokens.

The logits are compared with those of the network that the file was written from.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from gguf import GGUFWriter, TokenType
from hard_texts import hard_texts

import tiny
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.models.aliases import ALIASES
from radistill.models.gguf import read_gguf
from radistill.models.gguf.tokenizer import RULES
from radistill.models.loading import load
from radistill.pipeline import preflight

TEXTS = hard_texts(200)
FIRST_NAMES = [rule.names[0] for rule in RULES]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADISTILL_CACHE", str(tmp_path / "cache"))


def differing(path: Path, tokenizer: Any, texts: list[str] = TEXTS) -> Iterator[tuple[str, list[int], list[int]]]:
    """Texts whose tokens are not llama.cpp's, with both."""
    engine = LlamaCpp(path)
    for text in texts:
        ours, theirs = tokenizer(text)["input_ids"], engine.tokenize(text)
        if ours != theirs:
            yield text, ours, theirs


@pytest.mark.parametrize("name", [*FIRST_NAMES, None])
def test_tokens_of_each_rule(tmp_path: Path, name: str | None) -> None:
    vocabulary = tiny_gguf.byte_level(name, begins=None, whole="Zebra")
    tiny_gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary)
    assert list(differing(tmp_path / "m.gguf", load(tmp_path / "m.gguf").tokenizer)) == []


@pytest.mark.slow
def test_tokens_by_every_other_name_of_a_rule(tmp_path: Path) -> None:
    for name in (name for rule in RULES for name in rule.names[1:]):
        tiny_gguf.write(tmp_path / "m.gguf", vocabulary=tiny_gguf.byte_level(name, begins=None, whole="Zebra"))
        tokenizer = read_gguf(tmp_path / "m.gguf").tokenizer
        assert list(differing(tmp_path / "m.gguf", tokenizer, TEXTS[:30])) == [], name


def test_the_texts_tell_the_rules_apart(tmp_path: Path) -> None:
    found = {}
    for name in FIRST_NAMES:
        vocabulary = tiny_gguf.byte_level(name, whole="Zebra")
        tiny_gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary)
        tokenizer = read_gguf(tmp_path / "m.gguf").tokenizer
        found[name] = [tokenizer(text)["input_ids"] for text in TEXTS]
    for one, other in combinations(found, 2):
        assert found[one] != found[other], (one, other)


@pytest.mark.parametrize("prefix", [None, True, False])
def test_tokens_of_sentencepiece(tmp_path: Path, prefix: bool | None) -> None:
    tiny_gguf.write(tmp_path / "m.gguf", vocabulary=tiny_gguf.sentencepiece(prefix=prefix))
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert list(differing(tmp_path / "m.gguf", tokenizer)) == []
    for text in ("Grüße, 世界!\n", "two  spaces", "🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize(("begins", "ends"), [(True, False), (False, True), (True, True)])
def test_begin_and_end(tmp_path: Path, begins: bool, ends: bool) -> None:
    tiny_gguf.write(
        tmp_path / "m.gguf",
        vocabulary=tiny_gguf.byte_level("llama-bpe", begins=begins),
        extra=lambda writer: writer.add_add_eos_token(ends),
    )
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert list(differing(tmp_path / "m.gguf", tokenizer, TEXTS[:20])) == []
    tokens = tokenizer("a")["input_ids"]
    assert (tokens[0] == 1, tokens[-1] == 3) == (begins, ends)


def test_merges_that_are_there_twice(tmp_path: Path) -> None:
    def extra(writer: GGUFWriter) -> None:
        merges = writer.kv_data[0]["tokenizer.ggml.merges"].value
        merges += merges[:40]

    tiny_gguf.write(tmp_path / "m.gguf", extra=extra)
    assert list(differing(tmp_path / "m.gguf", load(tmp_path / "m.gguf").tokenizer)) == []


def test_an_end_token_that_the_file_calls_ordinary(tmp_path: Path) -> None:
    def extra(writer: GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.token_type"].value[3] = TokenType.NORMAL

    tiny_gguf.write(tmp_path / "m.gguf", extra=extra)
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert tokenizer(f"a{tiny.END}")["input_ids"][-1] == 3
    assert list(differing(tmp_path / "m.gguf", tokenizer, TEXTS[:50])) == []


def place(vocabulary: tiny_gguf.Extra, texts: list[str], kind: TokenType) -> tiny_gguf.Extra:
    """The vocabulary with these tokens in place of unused ones."""

    def add(writer: GGUFWriter) -> None:
        vocabulary(writer)
        values = writer.kv_data[0]
        tokens, types = values["tokenizer.ggml.tokens"].value, values["tokenizer.ggml.token_type"].value
        for row, text in enumerate(texts, start=len(tokens) - len(texts)):
            tokens[row], types[row] = text, kind

    return add


# One for each of llama.cpp's rules about the text of a token. It takes one only of those with a role in filling in.
BY_TEXT = ["<turn|>", "<|return|>", "▁<PRE>", "<|suffix|>", "<fim_middle>", "<PAD>", "<reponame>", "<|file_sep|>"]


@pytest.mark.parametrize("vocabulary", [tiny_gguf.byte_level("smollm"), tiny_gguf.sentencepiece()])
def test_tokens_that_llama_cpp_knows_by_their_text(tmp_path: Path, vocabulary: tiny_gguf.Extra) -> None:
    names = [*BY_TEXT, "<|channel|>"]
    tiny_gguf.write(tmp_path / "m.gguf", vocabulary=place(vocabulary, names, TokenType.NORMAL))
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert list(differing(tmp_path / "m.gguf", tokenizer, [f"a {name} b{name}c" for name in names])) == []
    assert {name for name in names if tokenizer.convert_tokens_to_ids(name) in tokenizer(name)["input_ids"]} == {*names}
    assert tokenizer.decode(tokenizer("<PAD><|channel|>")["input_ids"], skip_special_tokens=True) == "<|channel|>"


def test_a_role_that_the_file_gives_goes_before_the_text_of_a_token(tmp_path: Path) -> None:
    tiny_gguf.write(
        tmp_path / "m.gguf",
        vocabulary=place(tiny_gguf.byte_level("smollm"), ["<PRE>", "<PAD>"], TokenType.NORMAL),
        extra=lambda writer: writer.add_uint32("tokenizer.ggml.prefix_token_id", 5),
    )
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert list(differing(tmp_path / "m.gguf", tokenizer, ["a<PRE>b", "a<PAD>b"])) == []
    assert tokenizer.convert_tokens_to_ids("<PRE>") not in tokenizer("<PRE>")["input_ids"]


@pytest.mark.parametrize(
    ("vocabulary", "lacking"), [(tiny_gguf.byte_level("smollm"), "<unk>"), (tiny_gguf.sentencepiece(), tiny.PAD)]
)
def test_a_model_called_phi_3_goes_without_spaces_after_special_tokens(
    tmp_path: Path, vocabulary: tiny_gguf.Extra, lacking: str
) -> None:
    tiny_gguf.write(
        tmp_path / "m.gguf",
        vocabulary=place(vocabulary, ["</s>", "<s>", lacking], TokenType.CONTROL),
        extra=lambda writer: writer.add_name("Phi-3 mini as a Llama"),
    )
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    texts = [f"a {name}{space}b" for name in ("<s>", "</s>", *tiny.SPECIAL) for space in (" ", "  ", "\n\n", "\t \r\n")]
    assert list(differing(tmp_path / "m.gguf", tokenizer, texts)) == []
    assert tokenizer(f"{tiny.END}  b")["input_ids"] == tokenizer(f"{tiny.END}b")["input_ids"]


@pytest.mark.real
def test_tokens_of_the_alias() -> None:
    path = ALIASES["smollm2-135m"].packaged_file()
    assert path is not None
    assert list(differing(path, read_gguf(path).tokenizer)) == []


def llama3(factor: float, original: int) -> dict[str, Any]:
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    return {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **bounds}


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS = {
    "none": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": YARN,
    "llama 3.1": llama3(8.0, 8192),
    "llama 3.2": llama3(32.0, 8192),
    "llama 3 of a short context": llama3(8.0, 16),
}
# llama.cpp leaves these keys aside, though its converter writes them.
OWN_YARN = {
    "yarn with a factor": {**YARN, "attention_factor": 1.3},
    "yarn with bounds": {**YARN, "beta_fast": 4.0, "beta_slow": 2.0},
}


CASES = {
    f"{family}, {name}": (family, rope)
    for family in ("llama", "qwen2")
    for name, rope in SCALINGS.items()
    if family == "llama" or rope["rope_type"] != "llama3"  # only llama.cpp's llama takes divisors
}
OWN_CASES = {name: ("qwen2", rope) for name, rope in OWN_YARN.items()}


@pytest.mark.parametrize(("family", "rope"), (CASES | OWN_CASES).values(), ids=CASES | OWN_CASES)
def test_logits_of_each_rotary_scaling(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    expected = tiny_gguf.write(tmp_path / "m.gguf", family=family, rope_parameters=rope)
    network = load(tmp_path / "m.gguf").network
    tokens = torch.randint(4, 500, (1, 300), generator=torch.Generator().manual_seed(0))
    apart = torch.arange(300)[None] * 100  # far beyond every original context
    with torch.no_grad():
        for positions in (None, apart):
            wanted = expected(tokens, position_ids=positions).logits
            torch.testing.assert_close(network(tokens, position_ids=positions).logits, wanted, rtol=0, atol=1e-4)
        if rope["rope_type"] != "default":  # otherwise the agreement would say nothing
            plain = tiny.build(
                family,
                layers=2,
                vocab_size=tiny_gguf.ROWS,
                rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]},
            )
            assert (plain(tokens, position_ids=apart).logits - wanted).abs().max() > 0.1
    assert preflight._config(str(tmp_path / "m.gguf"), False, []).rope_parameters == network.config.rope_parameters
    for field, value in rope.items():
        assert network.config.rope_parameters[field] == pytest.approx(value), field


@pytest.mark.parametrize(("family", "rope"), CASES.values(), ids=CASES)
def test_greedy_tokens_of_each_rotary_scaling(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    tiny_gguf.write(tmp_path / "m.gguf", family=family, rope_parameters=rope, vocabulary=tiny_gguf.byte_level("smollm"))
    model = load(tmp_path / "m.gguf")
    prompt = torch.randint(4, 500, (1, 300), generator=torch.Generator().manual_seed(1))
    tokens = model.network.generate(prompt, do_sample=False, max_new_tokens=16, eos_token_id=None)[0, 300:].tolist()
    assert LlamaCpp(tmp_path / "m.gguf").greedy(prompt[0].tolist(), 16, ignore_eos=True)["tokens"] == tokens
