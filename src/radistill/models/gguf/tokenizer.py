"""The tokenizer of a GGUF file: the vocabulary from its lists, the rule that cuts a text into words from its name."""

from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from radistill.errors import RadistillError
from radistill.models.checkpoint import check_templates, refusing
from radistill.models.gguf.account import Account

_GPT2_WORD = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _isolated(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


def _words(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [*_isolated(pattern), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


@dataclass(frozen=True)
class Rule:
    """How a text is cut into words.

    Attributes:
        names: llama.cpp's (`tokenizer.ggml.pre`), the most common one first.
        steps: one after the other.
        whole_words: a word that is a token is taken whole, whatever the merges say (`ignore_merges`).
        begins: a text begins with the begin token where the file does not say.
    """

    names: tuple[str, ...]
    steps: list[pre_tokenizers.PreTokenizer]
    whole_words: bool = False
    begins: bool = False


RULES = (
    Rule(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4"), [_GPT2]),
    Rule(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    ),
    Rule(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), _words("")),
    Rule(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _words("{1,3}"),
        whole_words=True,
        begins=True,
    ),
    Rule(("dbrx", "smaug-bpe"), _words("{1,3}")),
    # The rule of a file that names none.
    Rule(
        ("default",),
        [
            *_isolated(r"[\p{P}$+<=>^~|]+", _GPT2_WORD, r"\p{N}+", "[0-9]{3}"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    ),
)

# llama.cpp takes these for control tokens, whatever their type in the file: they end a text,
_CONTROL = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<EOT>"}
_CONTROL |= {"<end_of_turn>", "<eos>", "[EOT]", "[EOS]", "_<EOT>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"}
_CONTROL |= {"<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~["}
# or ask for what is missing in the middle of one, where no key says which token does.
_FILL = {
    ("fim_pre", "prefix"): {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>", "<|code_prefix|>"}
    | {"<|prefix|>", "<｜fim▁begin｜>"},
    ("fim_suf", "suffix"): {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "▁<SUF>", "<|code_suffix|>"}
    | {"<|suffix|>", "<｜fim▁hole｜>"},
    ("fim_mid", "middle"): {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>", "<|code_middle|>"}
    | {"<|middle|>", "<｜fim▁end｜>"},
    ("fim_pad",): {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
    ("fim_rep",): {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    ("fim_sep",): {"<|file_sep|>"},
}
_SHOWN = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}  # these it shows, and matches them as they are
# A model of this name goes without the white space that follows a token which is matched as a whole.
_PHI3 = ("phi-3", "phi3")
_BEFORE_SPACE = {"<unk>", "<s>", "<|endoftext|>"}  # but for these

_SPACE = "▁"  # SentencePiece's


def read_tokenizer(account: Account) -> PreTrainedTokenizerFast:
    """The tokenizer that the keys `tokenizer.*` describe.

    Raises:
        RadistillError: naming the key that is missing, contradicts another, or describes what is not read.
    """
    kind = account.need("tokenizer.ggml.model", str)
    tokens = [text or f"[EMPTY_{row}]" for row, text in enumerate(account.need("tokenizer.ggml.tokens", list))]
    types = account.take("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise RadistillError(
            f"{account.path}: {len(tokens)} tokens have {len(types)} types (tokenizer.ggml.token_type)"
        )
    if kind == "gpt2":
        # Rows of the embedding without a token have a name in the file, which no other tokenizer of the model knows.
        used = [row for row, type_ in enumerate(types) if type_ != TokenType.UNUSED]
        named = [token_id(account, role, len(tokens)) or 0 for role in ("bos", "eos", "unknown", "padding")]
        tokens = tokens[: max([*used, *named]) + 1]
        types = types[: len(tokens)]
    rows = {text: row for row, text in enumerate(tokens)}
    if len(rows) < len(tokens):
        twice = next(text for row, text in enumerate(tokens) if rows[text] != row)
        raise RadistillError(f"{account.path}: tokenizer.ggml.tokens has {twice!r} twice")
    for key in ("add_sep_token", "remove_extra_whitespaces"):
        account.only(f"tokenizer.ggml.{key}", False, because="no tokenizer is read that does so")
    if kind == "gpt2":
        backend, begins = _byte_level(account, rows)
    elif kind == "llama":
        backend, begins = _sentencepiece(account, tokens, types, rows), True
    else:
        raise RadistillError(
            f"{account.path}: tokenizer.ggml.model is {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece) are "
            "read; take the model's safetensors folder"
        )
    backend.add_tokens(_whole_tokens(account, tokens, types))
    roles = {
        role: tokens[row]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (row := token_id(account, key, len(tokens))) is not None
    }
    ends = [
        role if account.take(f"tokenizer.ggml.add_{role}_token", default) else None
        for role, default in (("bos", begins), ("eos", False))
    ]
    for role in ends:
        if role is not None and role not in roles:
            raise RadistillError(f"{account.path}: a text begins or ends with {role}, but {role}_token_id is missing")
    before, after = ([roles[role]] if role is not None else [] for role in ends)
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[(text, rows[text]) for text in before + after],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        chat_template=_chat_templates(account),
        **{f"{role}_token": text for role, text in roles.items()},
    )


def _whole_tokens(account: Account, tokens: list[str], types: list[int]) -> list[AddedToken]:
    """The tokens that are found in a text before it is cut into words, as llama.cpp finds them."""
    control = set(_CONTROL)
    for roles, texts in _FILL.items():
        if not any(f"tokenizer.ggml.{role}_token_id" in account for role in roles):
            control |= texts
    is_phi3 = any(name in account.take("general.name", "").lower() for name in _PHI3)
    special: dict[int, bool] = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    found = []
    for text, type_ in zip(tokens, types, strict=True):
        if text in control or text in _SHOWN or type_ in special:
            is_special = text not in _SHOWN and (text in control or special[type_])
            strips = is_phi3 and text not in _BEFORE_SPACE
            found.append(AddedToken(text, normalized=False, special=is_special, rstrip=strips))
    return found


def _chat_templates(account: Account) -> str | dict[str, str] | None:
    """The chat template, or all of them by their names where there are named ones."""
    default = account.take("tokenizer.chat_template", "")
    account.take("tokenizer.chat_templates", [])  # the names, which the keys say too
    prefix = "tokenizer.chat_template."
    named = {name: account.need(prefix + name, str) for name in account.names(prefix)}
    check_templates(account.path, named)
    return ({"default": default} if default else {}) | named if named else default or None


def token_id(account: Account, role: str, count: int) -> int | None:
    """The row of the token with a role (bos, eos, eot, eom, unknown, padding), or None where the file names none.

    Raises:
        RadistillError: if there is no such row.
    """
    row = account.take(f"tokenizer.ggml.{role}_token_id", -1)
    if row >= count:
        raise RadistillError(f"{account.path}: tokenizer.ggml.{role}_token_id is {row}, but there are {count} tokens")
    return row if row >= 0 else None


def _byte_level(account: Account, rows: dict[str, int]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE by the rule that `tokenizer.ggml.pre` names, and whether it begins a text with the begin token."""
    name = account.take("tokenizer.ggml.pre", "default")
    rule = next((rule for rule in RULES if name in rule.names), None)
    if rule is None:
        known = ", ".join(rule.names[0] for rule in RULES)
        raise RadistillError(
            f"{account.path}: the rule {name!r} for cutting a text into words (tokenizer.ggml.pre) is not known here "
            f"(known are {known}); take the model's safetensors folder"
        )
    account.take("tokenizer.ggml.add_space_prefix", False)  # llama.cpp asks for it in SentencePiece only
    account.take("tokenizer.ggml.scores", [])  # and for these
    merges = []
    for merge in dict.fromkeys(account.need("tokenizer.ggml.merges", list)):  # the first of equal ones counts
        space = merge.find(" ", 1)
        merges.append((merge[:space], merge[space + 1 :]))
    with refusing(f"{account.path}: tokenizer.ggml.merges do not fit the tokens"):
        backend = Tokenizer(models.BPE(rows, merges, ignore_merges=rule.whole_words))
    backend.pre_tokenizer = pre_tokenizers.Sequence(rule.steps)
    backend.decoder = decoders.ByteLevel()
    return backend, rule.begins


def _sentencepiece(account: Account, tokens: list[str], types: list[int], rows: dict[str, int]) -> Tokenizer:
    """SentencePiece's BPE: neighbours that form the token of the highest score are joined first; the rest are bytes."""
    account.only("tokenizer.ggml.pre", "default", because="a SentencePiece tokenizer has no other rule")
    account.take("tokenizer.ggml.merges", [])  # llama.cpp goes by the scores
    scores = account.need("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens) or any(f"<0x{byte:02X}>" not in rows for byte in range(256)):
        raise RadistillError(f"{account.path}: a SentencePiece tokenizer needs a score per token and a token per byte")
    joined: dict[float, str] = {}
    merges = []
    for text, type_, score in zip(tokens, types, scores, strict=True):
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))] if type_ == TokenType.NORMAL else []
        pairs = [(left, right) for left, right in pairs if left in rows and right in rows]
        if pairs and (other := joined.setdefault(score, text)) != text:
            raise RadistillError(
                f"{account.path}: {other!r} and {text!r} have one score (tokenizer.ggml.scores), so their order is not "
                "told; take the model's safetensors folder"
            )
        merges += [(-score, len(left), (left, right)) for left, right in pairs]
    unknown = next((text for text, type_ in zip(tokens, types, strict=True) if type_ == TokenType.UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(rows, [pair for *_, pair in sorted(merges)], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = account.take("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
