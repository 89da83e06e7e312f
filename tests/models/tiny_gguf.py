"""A tiny Llama, stored as a GGUF file in float32, so that reading it back must give the same weights."""

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel

import tiny

_MERGES = ["a b", "c d"]  # readers take an empty list, or a list of one, for something else

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
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path, seed: int = 0) -> PreTrainedModel:
    """Write a random two-layer Llama to `path` and return the network that it must become."""
    network = tiny.build("llama", layers=2, seed=seed, vocab_size=tiny.VOCAB_SIZE + len(_MERGES))
    config = network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for name, parameter in network.named_parameters():
        weight = parameter.detach().numpy()
        if "q_proj" in name:
            weight = _interleave(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = _interleave(weight, config.num_key_value_heads)
        writer.add_tensor(_translate(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return network


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    vocabulary += [(merge.replace(" ", ""), len(vocabulary) + index) for index, merge in enumerate(_MERGES)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    special = gguf.TokenType.CONTROL
    writer.add_token_types([special if token in tiny.SPECIAL else gguf.TokenType.NORMAL for token, _ in vocabulary])
    writer.add_token_merges(_MERGES)
    writer.add_pad_token_id(256)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(259)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)


def _translate(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.weight"
    return f"{_NAMES[stem]}.weight"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """From rotary halves side by side, as transformers has them, to pairs of neighbours, as llama.cpp does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
