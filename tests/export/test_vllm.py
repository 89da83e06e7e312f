"""What vLLM's class for this architecture reads is in an export, as far as that can be told without vLLM.

The lists are from vLLM's `model_executor/models/granitemoehybrid.py` as of 2026: fields of the config that it reads
without a default, names of layer types, and parameters into which its loader puts weights of these names.
"""

import re
from pathlib import Path

import pytest
import small
from safetensors import safe_open

from radistill.conversion import convert
from radistill.export import export
from radistill.files import read_json

FIELDS = {
    "architectures", "attention_bias", "attention_multiplier", "embedding_multiplier", "hidden_act", "hidden_size",
    "intermediate_size", "layer_types", "logits_scaling", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head",
    "mamba_d_state", "mamba_expand", "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "max_position_embeddings",
    "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "num_local_experts",
    "position_embedding_type", "residual_multiplier", "rms_norm_eps", "rope_parameters", "shared_intermediate_size",
    "tie_word_embeddings", "vocab_size",
}  # fmt: skip
LAYER_TYPES = {"attention", "mamba"}
WEIGHTS = re.compile(
    r"model\.(embed_tokens|norm)\.weight|lm_head\.weight|model\.layers\.\d+\.("
    r"(input_layernorm|post_attention_layernorm|shared_mlp\.(input|output)_linear)\.weight"
    r"|self_attn\.[qkvo]_proj\.(weight|bias)"
    r"|mamba\.(A_log|D|dt_bias|norm\.weight|in_proj\.weight|out_proj\.weight|conv1d\.(weight|bias)))"
)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "granite"])
def test_an_export_has_what_vllm_reads(tmp_path: Path, family: str) -> None:
    student = convert(small.model(family), [0, 2], init="zero")
    student.save(tmp_path / "student")
    out = export(tmp_path / "student", "hf", tmp_path / "out")
    config = read_json(out / "config.json")
    assert set(config) >= FIELDS
    assert config["architectures"] == ["GraniteMoeHybridForCausalLM"]
    assert set(config["layer_types"]) <= LAYER_TYPES
    # It derives these, and takes the widths for granted.
    assert config["hidden_size"] == config["num_attention_heads"] * student.anatomy.head_dim
    assert config["mamba_expand"] * config["hidden_size"] == config["mamba_n_heads"] * config["mamba_d_head"]
    with safe_open(out / "model.safetensors", framework="pt") as handle:
        names = set(handle.keys())
    assert [name for name in names if not WEIGHTS.fullmatch(name)] == []
    assert ("lm_head.weight" in names) != config["tie_word_embeddings"]
