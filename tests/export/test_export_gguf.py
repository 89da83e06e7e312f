"""What is in the file: settings, tensors that turn back into the weights, the vocabulary, and what is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import small
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

import tiny
from radistill.conversion import convert
from radistill.conversion.targets.plain_gguf import rotary_pairs
from radistill.errors import RadistillError
from radistill.export import write_gguf

LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}


def written(folder: Path, dtype: str | None = None, **settings: Any) -> tuple[GGUFReader, dict[str, torch.Tensor]]:
    """A small hybrid as GGUF, and its weights as they are in the folder."""
    small.save(folder / "model", **settings)
    write_gguf(folder / "model", folder / "m.gguf", dtype)
    return GGUFReader(folder / "m.gguf"), load_file(folder / "model" / "model.safetensors")


def value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def tensor(reader: GGUFReader, name: str) -> torch.Tensor:
    (found,) = [tensor for tensor in reader.tensors if tensor.name == name]
    return torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).copy())


def test_settings(tmp_path: Path) -> None:
    reader, _ = written(tmp_path)
    expected = {
        "general.architecture": "granitehybrid",
        "granitehybrid.block_count": 4,
        "granitehybrid.context_length": 512,
        "granitehybrid.embedding_length": 32,
        "granitehybrid.feed_forward_length": 64,
        "granitehybrid.attention.head_count": 4,
        "granitehybrid.attention.head_count_kv": [0, 2, 0, 2],
        "granitehybrid.rope.dimension_count": 8,
        "granitehybrid.rope.freq_base": 10000.0,
        "granitehybrid.rope.scaling.finetuned": True,
        "granitehybrid.expert_count": 0,
        "granitehybrid.ssm.conv_kernel": 4,
        "granitehybrid.ssm.state_size": 8,
        "granitehybrid.ssm.group_count": 2,  # one, and one of zeros
        "granitehybrid.ssm.inner_size": 64,
        "granitehybrid.ssm.time_step_rank": 8,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tiny.CHAT_TEMPLATE,
    }
    assert {key: value(reader, key) for key in expected} == expected
    for key, multiplier in (("embedding_scale", 1.5), ("logit_scale", 2.0), ("residual_scale", 0.6)):
        assert value(reader, f"granitehybrid.{key}") == pytest.approx(multiplier)
    assert value(reader, "granitehybrid.attention.scale") == pytest.approx(0.3)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_come_back(tmp_path: Path, groups: int) -> None:
    reader, weights = written(tmp_path, mamba_n_groups=groups, attention_bias=True)

    def weight(name: str) -> torch.Tensor:
        return weights[f"model.layers.{name}"]

    # Queries and keys: pairs of neighbours become halves again, and biases with them.
    for kind, heads in (("q", 4), ("k", 2)):
        for part in ("weight", "bias"):
            found = tensor(reader, f"blk.1.attn_{kind}.{part}")
            halves = found.reshape(heads, 4, 2, -1).transpose(1, 2).reshape(found.shape)
            assert torch.equal(halves, weight(f"1.self_attn.{kind}_proj.{part}"))
    assert torch.equal(tensor(reader, "blk.1.attn_v.bias"), weight("1.self_attn.v_proj.bias"))
    assert torch.equal(tensor(reader, "blk.1.attn_output.weight"), weight("1.self_attn.o_proj.weight"))
    gate_up = torch.cat([tensor(reader, f"blk.0.ffn_{part}.weight") for part in ("gate", "up")])
    assert torch.equal(gate_up, weight("0.shared_mlp.input_linear.weight"))

    # The scan: each segment is followed by as many zeros.
    states = 8 * groups
    for name, source, sizes in (
        ("ssm_in.weight", "in_proj.weight", [32, 32, states, states, 4]),
        ("ssm_conv1d.weight", "conv1d.weight", [32, states, states]),
        ("ssm_conv1d.bias", "conv1d.bias", [32, states, states]),
        ("ssm_dt.bias", "dt_bias", [4]),
        ("ssm_d", "D", [4]),
        ("ssm_norm.weight", "norm.weight", [32]),
    ):
        found, original = tensor(reader, f"blk.0.{name}"), weight(f"0.mamba.{source}")
        segments = found.reshape(2 * sum(sizes), -1).split([size for size in sizes for _ in range(2)])
        assert torch.equal(torch.cat(segments[::2]), original.reshape(sum(sizes), -1)), name
        assert not any(segment.any() for segment in segments[1::2]), name
    assert tensor(reader, "blk.0.ssm_norm.weight").shape == (2 * groups, 32 // groups)
    decay = tensor(reader, "blk.0.ssm_a")
    assert torch.equal(decay[:4, 0], -weight("0.mamba.A_log").exp())
    out = tensor(reader, "blk.0.ssm_out.weight")
    assert torch.equal(out[:, :32], weight("0.mamba.out_proj.weight"))
    assert not out[:, 32:].any()


def test_rotary_pairs_are_one_reordering_within_each_head() -> None:
    rows = torch.arange(8)
    assert rotary_pairs(rows, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert rotary_pairs(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("dtype", "matrices", "tolerance"),
    [("float32", "F32", 0), ("float16", "F16", 1e-3), ("bfloat16", "BF16", 1e-2), ("q8_0", "Q8_0", 2e-2)],
)
def test_types(tmp_path: Path, dtype: str, matrices: str, tolerance: float) -> None:
    reader, weights = written(tmp_path, dtype, shared_intermediate_size=48)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.1.attn_v.weight"] == types["token_embd.weight"] == matrices
    # Rows of 48 do not divide into blocks of 32.
    assert types["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else matrices)
    for name in ("attn_norm.weight", "ssm_conv1d.weight", "ssm_a", "ssm_d", "ssm_norm.weight", "ssm_dt.bias"):
        assert types[f"blk.0.{name}"] == "F32"
    expected = weights["model.layers.1.self_attn.v_proj.weight"]
    assert (tensor(reader, "blk.1.attn_v.weight") - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_type_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    model = small.model()
    model.network.to(torch.bfloat16)
    model.save(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    found = tensor(GGUFReader(tmp_path / "m.gguf"), "blk.1.attn_v.weight")
    expected = load_file(tmp_path / "model" / "model.safetensors")["model.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(found, expected.float())


def test_vocabulary(tmp_path: Path) -> None:
    reader, _ = written(tmp_path)
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert tokens[:4] == list(tiny.SPECIAL)
    assert types[:4] == [gguf.TokenType.CONTROL] * 4
    assert len(tokens) == len(types) == small.ROWS
    assert set(types[small.TOKENS :]) == {gguf.TokenType.UNUSED}
    # As llama.cpp's converter names them: otherwise a file of its own and one of ours do not draft for one another.
    assert tokens[small.TOKENS :] == [f"[PAD{row}]" for row in range(small.TOKENS, small.ROWS)]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": ["full_attention"] * 4}, "no SSM layer"),
        ({"mamba_proj_bias": True}, r"projections \(mamba_proj_bias=True\)"),
        ({"mamba_conv_bias": False}, r"\(mamba_conv_bias=False\)"),
        ({"mamba_expand": 3, "mamba_n_heads": 12}, r"inner width of 3 .*only 1 and 2"),
        ({"time_step_limit": (0.01, 1.0)}, r"limited step sizes \(time_step_limit="),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling of type dynamic",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG}},
            "rotary scaling of type longrope",
        ),
    ],
)
def test_what_llama_cpp_cannot_hold_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    small.save(tmp_path / "model", **settings)
    with pytest.raises(RadistillError, match=message):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_other_architectures_have_no_gguf_here(tmp_path: Path) -> None:
    tiny.save("phi3", tmp_path / "model")
    with pytest.raises(RadistillError, match=r"architecture phi3 .*granitemoehybrid, qwen3_5_text, .*qwen3 only"):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf")


def test_tokenizers_that_llama_cpp_does_not_know_are_named(tmp_path: Path) -> None:
    tiny.save("granitemoehybrid", tmp_path / "model")
    with pytest.raises(RadistillError, match="no merges"):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    small.save(tmp_path / "cut")
    path = tmp_path / "cut" / "tokenizer.json"
    path.write_text(path.read_text().replace('"individual_digits": true', '"individual_digits": false'))
    with pytest.raises(RadistillError, match=r"cuts words by .*Digits.*\(known are gpt-2, smollm"):
        write_gguf(tmp_path / "cut", tmp_path / "m.gguf")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_stops_the_export_and_leaves_nothing(tmp_path: Path, number: float) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.3.self_attn.v_proj.weight"][0, 0] = number
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RadistillError, match=r"layers.3.self_attn.v_proj.weight: holds NaN"):
        write_gguf(tmp_path / "model", tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_weight_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    norm = weights.pop("model.layers.2.mamba.norm.weight")
    for changed, message in (
        ({}, "norm.weight is missing"),
        ({"model.layers.2.mamba.norm.weight": norm[:8]}, r"\[8\]"),
    ):
        save_file(weights | changed, path, metadata={"format": "pt"})
        with pytest.raises(RadistillError, match=message):
            write_gguf(tmp_path / "model", tmp_path / "m.gguf")


def test_numbers_beyond_float16_are_refused_in_float16(tmp_path: Path) -> None:
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][0, 0] = 1e6
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RadistillError, match=r"lm_head.weight: .*take --dtype bfloat16"):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf", "float16")
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", "bfloat16")
    assert np.isfinite(tensor(GGUFReader(tmp_path / "m.gguf"), "output.weight")).all()


def test_qwen3_5_what_llama_cpp_cannot_compute_is_named(tmp_path: Path) -> None:
    cases = {
        "biases in attention .attention_bias=True": (small.model("qwen3", attention_bias=True), {}),
        "keys of 16 and values of 8 channels": (small.model("qwen3"), {"key_dim": 16}),
        "rotary scaling of type dynamic": (
            small.model("qwen3", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            {},
        ),
        "mixture of experts .num_experts=4": (small.model("qwen3_moe"), {}),
    }
    for number, (message, (source, settings)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        convert(source, [1], target={"kind": "qwen3.5", **settings}, init="random").save(folder)
        with pytest.raises(RadistillError, match=f"llama.cpp's qwen35 cannot hold this model: {message}"):
            write_gguf(folder, tmp_path / "m.gguf")
    convert(small.model("qwen3"), []).save(tmp_path / "whole")
    with pytest.raises(RadistillError, match="no linear layer"):
        write_gguf(tmp_path / "whole", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
