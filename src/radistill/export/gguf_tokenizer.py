"""A tokenizer as llama.cpp reads it from GGUF metadata: byte-level BPE, by the definition of its parts."""

import json
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from radistill.console import note
from radistill.errors import RadistillError
from radistill.models.gguf.tokenizer import RULES

_STOPS = ("eos", "eot", "eom")
"""Roles of tokens at which llama.cpp stops."""


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file.

    Attributes:
        tokens: text of each row of the embedding; rows without a token are filled with unused ones.
        types: what each is: normal, control (never shown), user-defined (matched as it is written) or unused.
        merges: in order of rank, the two parts separated by a space.
        pre: llama.cpp's name for the way a text is cut into words.
        add_bos, add_eos: whether a text is encoded with them.
        special: token id by role.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    add_bos: bool
    add_eos: bool
    special: dict[str, int]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, eos_ids: list[int]) -> Vocabulary:
    """The vocabulary of `tokenizer`, padded to the `rows` of the embedding.

    Args:
        eos_ids: tokens at which transformers stops, by the generation config.

    Raises:
        RadistillError: naming the part of the tokenizer that llama.cpp has no equal of.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RadistillError("the tokenizer runs in Python only; a GGUF needs a tokenizer.json (a fast tokenizer)")
    definition = json.loads(backend.to_str())
    model = definition["model"]
    pre = _pre_tokenizer_name(definition)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not merges:
        raise RadistillError("the tokenizer has no merges, and llama.cpp reads no BPE vocabulary without them")
    tokens, types = _rows(tokenizer, rows)
    add_bos, add_eos = _ends(tokenizer)
    special = _special(tokenizer, eos_ids, add_eos)
    if further := [tokens[token] for token in eos_ids if token not in [special.get(role) for role in _STOPS]]:
        note(f"a GGUF names three end tokens, so llama.cpp may write on after {', '.join(further)}")
    return Vocabulary(tokens, types, merges, pre, add_bos, add_eos, special)


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add a vocabulary to the metadata."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(False)
    for role, token in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(token)


def _pre_tokenizer_name(definition: dict[str, Any]) -> str:
    model, normalizer = definition["model"], definition["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model["type"]
        raise RadistillError(f"the tokenizer is {kind}; only byte-level BPE is written to GGUF")
    # NFC changes only texts that are not composed already; llama.cpp leaves it out for Qwen2's own models too.
    if normalizer is not None and normalizer["type"] != "NFC":
        raise RadistillError(f"the tokenizer normalises by {normalizer['type']}, which llama.cpp does not do for BPE")
    steps = _steps(definition["pre_tokenizer"])
    for rule in RULES:
        known = tuple(step for part in rule.steps for step in _steps(json.loads(part.__getstate__())))
        if steps == known and bool(model.get("ignore_merges")) == rule.whole_words:
            return rule.names[0]
    raise RadistillError(
        f"the tokenizer cuts words by {' then '.join(steps) or 'no rule'}, for which no name of llama.cpp's is known "
        f"here (known are {', '.join(rule.names[0] for rule in RULES)})"
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """The steps of a pre-tokenizer, in words that tell apart what makes a difference."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in _steps(part))
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ("bytes by GPT-2's rule" if pre_tokenizer["use_regex"] else "bytes",)
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ("single digits",)
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return (f"split {pre_tokenizer['pattern'].get('Regex')}",)
    return (json.dumps(pre_tokenizer),)


def _rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    by_id = {token: text for text, token in tokenizer.get_vocab().items()}
    beyond = max(by_id)
    if beyond >= rows:
        raise RadistillError(
            f"the tokenizer's token {beyond} ({by_id[beyond]!r}) has no row in an embedding of {rows}; "
            "resize the embedding or take the tokenizer that belongs to the model"
        )
    added = tokenizer.added_tokens_decoder
    types: list[int] = [TokenType.NORMAL if row in by_id else TokenType.UNUSED for row in range(rows)]
    for row in by_id.keys() & added.keys():
        types[row] = TokenType.CONTROL if added[row].special else TokenType.USER_DEFINED
    # Named as by llama.cpp's converter: it drafts only with a model whose tokens have the same names.
    return [by_id.get(row, f"[PAD{row}]") for row in range(rows)], types


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its begin and end tokens around a text, as seen from what it does."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    add_bos = len(full) > len(bare) and full[0] == tokenizer.bos_token_id
    add_eos = len(full) > len(bare) + add_bos and full[-1] == tokenizer.eos_token_id
    expected = [tokenizer.bos_token_id] * add_bos + bare + [tokenizer.eos_token_id] * add_eos
    if full != expected:
        raise RadistillError(
            f"the tokenizer encodes 'a' as {full}; a GGUF can only add a begin and an end token to {bare}"
        )
    return add_bos, add_eos


def _special(tokenizer: PreTrainedTokenizerBase, eos_ids: list[int], add_eos: bool) -> dict[str, int]:
    """Token ids by role. llama.cpp stops at eos, eot and eom, which are therefore where transformers stops; only a
    tokenizer that ends texts with its own end token, or a model that stops nowhere, needs that one as eos."""
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    special = {role: int(token) for role, token in found.items() if token is not None}
    own = special.get("eos")
    if eos_ids and own not in eos_ids and not add_eos:
        own = eos_ids[0]
    stops = dict.fromkeys([*([] if own is None else [own]), *eos_ids])
    return special | dict(zip(_STOPS, stops, strict=False))
