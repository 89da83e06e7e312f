"""`radistill inspect`: the figures, the picture and the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, GPT2Config, StableLmConfig
from typer.testing import CliRunner

import tiny
from radistill.cli.inspect import inspect as command
from radistill.conversion.inspection import inspect, inspect_source, layer_picture, render
from radistill.errors import RadistillError
from radistill.models.loading import load
from radistill.texts import human_bytes, human_count, ranges


def page(report: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    return console.export_text()


def test_a_hybrid_by_hand(tmp_path: Path) -> None:
    report = inspect_source(tiny.save("granitemoehybrid", tmp_path, layers=3))
    attention = 2 * 32 * 32 + 2 * 32 * 16
    # Mamba: in_proj 32 -> 32 + 48 + 4, convolution 48 x 4 + 48, dt_bias, A_log and D 4 each, norm 32, out_proj 32 x 32.
    ssm = 32 * 84 + 48 * 4 + 48 + 3 * 4 + 32 + 32 * 32
    parameters = {
        "attention": attention,
        "ssm": 2 * ssm,
        "mlp": 3 * 3 * 32 * 64,
        "embedding": 2 * tiny.VOCAB_SIZE * 32,
        "other": 7 * 32,
    }
    assert report == {
        "source": str(tmp_path),
        "model_type": "granitemoehybrid",
        "layers": 3,
        "hidden_size": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "vocab_size": tiny.VOCAB_SIZE,
        "max_context": 512,
        "tied_embeddings": False,
        "dtype": "float32",
        "attention_layers": [1],
        "ssm_layers": [0, 2],
        "sliding_window": None,
        "sliding_layers": [],
        "parameters": {**parameters, "total": sum(parameters.values())},
        "kv_bytes_per_token": 64,
        "kv_bytes": {"4096": 64 * 4096, "32768": 64 * 32768, "131072": 64 * 131072},
        "ssm_state_bytes": 2 * (32 * 8 + 48 * 4) * 4,
        "target": "granite-hybrid",
        "in_the_way": {"qwen3.5": [report["in_the_way"]["qwen3.5"][0]]},
    }
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.REFUSED])
def test_the_config_tells_as_much_as_the_loaded_model(family: str, tmp_path: Path) -> None:
    loaded = inspect(tiny.model(family))
    assert {**inspect_source(tiny.save(family, tmp_path)), "source": f"tiny {family}"} == loaded
    target = "granite-hybrid" if family in tiny.FAMILIES else "qwen3.5" if family in tiny.QWEN35 else None
    assert loaded["target"] == target
    assert list(loaded["in_the_way"]) == [kind for kind in ("granite-hybrid", "qwen3.5") if kind != target]
    for line in page(loaded).splitlines():
        assert len(line) <= 100


def test_the_page_of_a_hybrid() -> None:
    text = page(inspect(tiny.model("granitemoehybrid", layers=12)))
    assert "MAMAMAMAMA MA" in [line.strip() for line in text.splitlines()]
    assert "384 B a token in bfloat16" in text
    assert "SSM state" in text
    assert "yes  the student target granite-hybrid can hold this model" in text


def test_the_page_of_a_refused_model() -> None:
    text = page(inspect(tiny.model("qwen2_moe")))
    assert "no  no student target can hold this model:" in text
    assert "mixture of experts (num_experts=4)" in text
    assert "another architecture than it is made for (model_type='qwen2_moe'; qwen3, " in " ".join(text.split())
    assert "SSM state" not in text


def test_the_picture_has_a_letter_for_each_layer() -> None:
    assert layer_picture(inspect(tiny.model("llama"))) == "AAAA"
    assert layer_picture(inspect(tiny.model("granitemoehybrid"))) == "MAMA"
    assert layer_picture(inspect(tiny.model("qwen2-window"))) == "AWWW"
    assert layer_picture(inspect(tiny.model("zamba2"))) == "MBMB"
    assert layer_picture(inspect(tiny.model("falcon_h1"))) == "BBBB"


@pytest.mark.parametrize(
    ("indices", "text"),
    [([], "none"), ([3], "3"), ([0, 1], "0-1"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([0, 2, 4], "0, 2, 4")],
)
def test_ranges(indices: list[int], text: str) -> None:
    assert ranges(indices) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (23040, "22.5 KiB"), (720 * 2**20, "720 MiB"), (2**50, "1024 TiB")],
)
def test_human_bytes(number: int, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (35136, "35.1k"), (134515008, "135M"), (3 * 10**9, "3B")]
)
def test_human_count(number: int, text: str) -> None:
    assert human_count(number) == text


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    folder = tiny.save("qwen2", tmp_path, layers=2)
    done = CliRunner().invoke(app, [str(folder), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == inspect_source(folder)
    done = CliRunner().invoke(app, [str(folder)])
    assert done.exit_code == 0
    assert "qwen2, stored in float32" in done.stdout
    done = CliRunner().invoke(app, [str(tmp_path / "missing")])
    assert isinstance(done.exception, RadistillError)


@pytest.mark.real
def test_smollm2() -> None:
    report = inspect_source("smollm2-135m")
    assert report["parameters"]["total"] == 134515008
    assert report["parameters"]["embedding"] == 49152 * 576
    text = page(report)
    assert "22.5 KiB a token in bfloat16" in text
    assert "AAAAAAAAAA AAAAAAAAAA AAAAAAAAAA" in text
    assert "yes  the student target granite-hybrid can hold this model" in text


@pytest.mark.parametrize(
    ("config", "where", "entry"),
    [
        (
            GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=100, n_positions=64),
            "at transformer.h, and a layer has ln_1, attn, ln_2, mlp",
            '"gpt2": Architecture(layers="transformer.h", attention="attn", mlp=("mlp",))',
        ),
        (
            StableLmConfig(
                num_hidden_layers=3, hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=100
            ),
            "at model.layers, and a layer has self_attn, mlp, input_layernorm",
            '"stablelm": Architecture(layers="model.layers", attention="self_attn", mlp=("mlp",))',
        ),
    ],
)
def test_a_type_that_is_not_in_the_table(config: Any, where: str, entry: str, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    report = inspect_source(tmp_path)
    assert {key: report[key] for key in ("layers", "hidden_size", "heads", "head_dim", "vocab_size")} == {
        "layers": 3,
        "hidden_size": 32,
        "heads": 4,
        "head_dim": 8,
        "vocab_size": 100,
    }
    assert report["parameters"]["total"] == sum(parameter.numel() for parameter in network.parameters())
    assert report["kv_bytes_per_token"] == 3 * 2 * report["kv_heads"] * 8 * 2
    assert report["tied_embeddings"] == config.tie_word_embeddings
    assert report["target"] is None
    assert entry in report["entry"]
    text = " ".join(page(report).split())
    assert where in text
    assert "src/radistill/models/architectures.py" in text
    json.dumps(report, allow_nan=False)
    with pytest.raises(RadistillError, match=f"model_type '{config.model_type}' is not an architecture we know"):
        load(tmp_path)


def test_a_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    fields = {
        "model_type": "mystery9",
        "text_config": {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "bfloat16"},
        "vision_config": {"num_hidden_layers": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    report = inspect_source(tmp_path)
    assert (report["layers"], report["hidden_size"], report["dtype"]) == (3, 64, "bfloat16")
    for key in ("vocab_size", "max_context", "tied_embeddings", "parameters", "kv_bytes_per_token"):
        assert report[key] is None, key
    text = " ".join(page(report).split())
    assert "context unknown" in text
    assert "does not know the type at all" in text
    json.dumps(report, allow_nan=False)
    with pytest.raises(RadistillError, match="transformers refuses this config"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": "many"}))
    with pytest.raises(RadistillError, match="transformers refuses this config"):
        inspect_source(tmp_path)


@pytest.mark.parametrize("settings", [{"kv_lora_rank": 8}, {"layer_types": ["conv", "full_attention"]}])
def test_a_cache_of_an_unknown_kind_is_not_guessed(settings: dict[str, Any], tmp_path: Path) -> None:
    config = StableLmConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=100)
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert inspect_source(tmp_path)["kv_bytes_per_token"] is None
