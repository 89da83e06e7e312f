"""Plain Transformers as GGUF files: read back they are the same, and llama.cpp computes what transformers does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from test_llama_cpp import SCALINGS, differences, random_prompts

from radistill.conversion.targets.plain_gguf import FORMATS, rotary_pairs
from radistill.errors import RadistillError
from radistill.export import export, gguf, write_gguf
from radistill.export.engines.llama_cpp import LlamaCpp
from radistill.models.loading import load
from radistill.models.vocabularies import check_same_tokenizer

BASE = {"rope_theta": 10000.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied and wide": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    **{f"llama, {name}": ("llama", {"rope_parameters": BASE | scaling}) for name, scaling in SCALINGS.items()},
    **{
        f"{family}, {name}": (family, {"rope_parameters": BASE | SCALINGS[name]})
        for family in ("qwen2", "qwen3")
        for name in ("linear", "yarn")
    },
    "llama, yarn that stretches": (
        "llama",
        {"rope_parameters": BASE | SCALINGS["yarn"] | {"attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
}
FAST = ("llama, tied", "llama, yarn that stretches", "qwen3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADISTILL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("family", "settings"), CASES.values(), ids=CASES)
def test_read_back_it_is_the_same(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    model = small.save(tmp_path / "model", family, **settings)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    again = load(tmp_path / "m.gguf")
    check_same_tokenizer(again, model)  # rows of a padded embedding are no tokens
    weights = again.network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    prompt = torch.tensor(random_prompts(small.TOKENS, count=2))
    with torch.inference_mode():
        assert (again.network(prompt).logits - model.network(prompt).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "settings"),
    [pytest.param(*case, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, case in CASES.items()],
)
def test_llama_cpp_writes_the_same_tokens(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    model = small.save(tmp_path / "model", family, **settings)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    prompts = [*random_prompts(small.TOKENS, count=3), *random_prompts(small.TOKENS, count=1, length=150)]
    unexcused, ties = differences(model, LlamaCpp(tmp_path / "m.gguf"), prompts, count=32)
    assert unexcused == 0
    assert ties <= 1


def test_a_rotation_that_is_not_reordered_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the agreement would say nothing about it."""
    model = small.save(tmp_path / "model", "llama")
    broken = dataclasses.replace(FORMATS["llama"], neighbours=False)
    monkeypatch.setattr(gguf, "gguf_formats", lambda: {"llama": broken})
    write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    prompts = random_prompts(small.TOKENS, count=3)
    assert differences(model, LlamaCpp(tmp_path / "m.gguf"), prompts, count=32)[0] == len(prompts)
    query = model.network.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(rotary_pairs(query, model.anatomy.num_heads), query)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"rope_parameters": BASE | {"rope_type": "dynamic", "factor": 2.0}}, "scaling of type dynamic"),
        ("qwen2", {"rope_parameters": BASE | SCALINGS["llama3"]}, "scaling of type llama3 .only default, linear"),
        ("llama", {"rope_parameters": BASE | SCALINGS["yarn"] | {"mscale": 0.7}}, "mscale=0.7 in the rotary"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("qwen3", {"attention_bias": True}, "biases in attention"),
        ("mistral", {"sliding_window": 16}, "a sliding window .sliding_window=16"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_named(
    tmp_path: Path, family: str, settings: dict[str, Any], message: str
) -> None:
    small.save(tmp_path / "model", family, **settings)
    with pytest.raises(RadistillError, match=message):
        export(tmp_path / "model", "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
