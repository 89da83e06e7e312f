"""Tiny models, stored as GGUF files in float32 as llama.cpp's converter lays them out.

Reading one back must give the same weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tiny

ROWS = 600  # of which the last are unused

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Extra = Callable[[gguf.GGUFWriter], None]


def write(
    path: Path,
    seed: int = 0,
    family: str = "llama",
    *,
    vocabulary: Extra | None = None,
    extra: Extra | None = None,
    parts_of: int = 0,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    rename: Callable[[str], str] = lambda name: name,
    **settings: Any,
) -> PreTrainedModel:
    """Write a random two-layer model to `path` and return the network that it must become.

    Args:
        vocabulary: adds the tokenizer; byte-level BPE by no rule's name if None.
        extra: adds further metadata or tensors.
        parts_of: tensors in each part of a split file; 0 writes one file.
        kind: how matrices are stored; the network has the numbers that they are rounded to.
        rename: from llama.cpp's name of a tensor to the one in the file; "" leaves it out.
    """
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    network = tiny.build(family, layers=2, seed=seed, vocab_size=ROWS, **{**special, **settings})
    config = network.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, config.model_type, split_max_tensors=parts_of)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_scaling(writer, config, head_size)
    (vocabulary or byte_level(None))(writer)
    if extra is not None:
        extra(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in network.named_parameters():
        weight = parameter.detach().numpy().copy()
        part = name.split(".")[-2]
        if config.model_type == "llama" and part in heads:
            weight = _interleave(weight, heads[part])
        stored = gguf.quantize(
            np.ascontiguousarray(weight), kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        )
        if target := rename(_translate(name)):
            writer.add_tensor(target, stored, raw_dtype=kind if weight.ndim == 2 else None)
        if weight.ndim == 2:
            rounded = torch.from_numpy(np.array(gguf.dequantize(gguf.quantize(parameter.detach().numpy(), kind), kind)))
            parameter.data.copy_(rounded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return network


def add_scaling(writer: gguf.GGUFWriter, config: Any, head_size: int) -> None:
    """Add a config's rotary scaling: a tensor of divisors for Llama 3's, keys for the others."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind == "llama3":
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(0, head_size, 2) / head_size)
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).float().numpy())
    elif kind != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for field, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(field) is not None:
                add(rope[field])


def byte_level(pre: str | None, *, begins: bool | None = False, whole: str | None = None) -> Extra:
    """A byte-level vocabulary whose merges go across words, so that tokens tell where a rule has cut.

    Args:
        pre: the name of the rule.
        begins: whether the file says that a text begins with the begin token; None says nothing.
        whole: a token that no merge leads to.
    """
    tokens, merges = _trained("Ġ")
    tokens = [*tiny.SPECIAL, *tokens, *([whole] if whole else [])]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        _add_tokens(writer, tokens, len(tiny.SPECIAL))
        writer.add_token_merges(merges)
        if begins is not None:
            writer.add_add_bos_token(begins)

    return add


def sentencepiece(*, prefix: bool | None = None) -> Extra:
    """A vocabulary of SentencePiece's kind, with scores instead of merges and a token for each byte."""
    pieces, _ = _trained("▁")
    head = ["<unk>", *tiny.SPECIAL[1:]]
    tokens = [*head, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces][: ROWS - 8]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        first = len(head) + 256
        _add_tokens(writer, tokens, len(head), first)
        writer.add_token_scores([float(first - row) if first <= row < len(tokens) else 0.0 for row in range(ROWS)])
        writer.add_unk_token_id(0)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    return add


def _add_tokens(writer: gguf.GGUFWriter, tokens: list[str], special: int, bytes_until: int = 0) -> None:
    kinds = gguf.TokenType
    types = [kinds.CONTROL] * special + [kinds.BYTE] * max(0, bytes_until - special)
    types += [kinds.NORMAL] * (len(tokens) - len(types)) + [kinds.UNUSED] * (ROWS - len(tokens))
    types[2] = kinds.USER_DEFINED
    if tokens[0] == "<unk>":
        types[0] = kinds.UNKNOWN
    writer.add_token_list(tokens + [f"[PAD{row}]" for row in range(len(tokens), ROWS)])
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(3)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)


def _trained(space: str) -> tuple[list[str], list[str]]:
    """Tokens and merges of a BPE that sees a text as one word, in bytes or with SentencePiece's sign for a space."""
    if space not in _TRAINED:
        backend = Tokenizer(models.BPE())
        if space == "Ġ":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(space, split=False)
            alphabet = []
        trainer = trainers.BpeTrainer(vocab_size=ROWS - 20, initial_alphabet=alphabet, show_progress=False)
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        lines = [readme[start : start + 40] for start in range(0, 12000, 40)]
        numbers = [f"{number}  {number}\n\n{number}, {number}\n    {number}" for number in range(0, 2000, 7)]
        backend.train_from_iterator(lines + numbers + ["  ", "    ", "\n\n", "it's", "I'LL", "é²ç"] * 20, trainer)
        model = json.loads(backend.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        _TRAINED[space] = tokens, merges
    return _TRAINED[space]


_TRAINED: dict[str, tuple[list[str], list[str]]] = {}


def _translate(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.{suffix}"
    return f"{_NAMES[stem]}.{suffix}"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """From rotary halves side by side, as transformers has them, to pairs of neighbours, as llama.cpp does."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
