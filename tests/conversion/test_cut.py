"""A model cut to fewer layers: what stays computes what it did, and a wrong copy is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

import tiny
from radistill.conversion import convert, new_parameters
from radistill.conversion.targets import TARGETS, cut, target_for
from radistill.errors import RadistillError
from radistill.models.loading import load

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama-tied", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2-window", {"max_window_layers": 2, "sliding_window": 8}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3-tied", {}),
    "mistral": ("mistral", {}),
    "mistral-tied": ("mistral", {"tie_word_embeddings": True}),
    "mistral-window": ("mistral-window", {"sliding_window": 8}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_stays_computes_what_it_did(name: str, tmp_path: Path) -> None:
    """Against the source run with the layers taken out by hand, and again from a stock folder."""
    family, settings = SOURCES[name]
    source = tiny.model(family, 5, **settings)
    student = convert(source, [0, 2], target="cut")
    assert student.conversion.max_start_difference == 0.0
    assert type(student.network) is type(source.network)
    assert student.anatomy.num_layers == 3
    assert new_parameters(student, TARGETS["cut"].new_blocks([0, 2])) == set()
    ids = torch.randint(4, 250, (2, 30), generator=torch.Generator().manual_seed(1))
    found = student.network(input_ids=ids).logits
    assert student.network.config.tie_word_embeddings == source.network.config.tie_word_embeddings
    of_source = {tensor.data_ptr() for tensor in source.network.parameters()}
    assert not of_source & {tensor.data_ptr() for tensor in student.network.parameters()}

    student.save(tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(again(input_ids=ids).logits, found)
    assert load(tmp_path / "student").network.config.num_hidden_layers == 3

    by_hand = source.network
    by_hand.model.layers = torch.nn.ModuleList(by_hand.model.layers[layer] for layer in (1, 3, 4))
    by_hand.model.config.num_hidden_layers = 3
    if getattr(by_hand.config, "layer_types", None):
        by_hand.config.layer_types = [by_hand.config.layer_types[layer] for layer in (1, 3, 4)]
    assert torch.equal(by_hand(input_ids=ids, use_cache=False).logits, found)


def test_lists_by_layer_are_cut_too() -> None:
    source = tiny.model("qwen2-window", 5, max_window_layers=2, sliding_window=8)
    config = convert(source, [1, 3], target="cut").network.config
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.max_window_layers == 1


@pytest.mark.parametrize("wrong", ["order", "config", "norm"])
def test_a_wrong_cut_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right, assemble = cut.student_config, cut.assemble

    def config_of(config: PreTrainedConfig, kept: list[int]) -> PreTrainedConfig:
        made = right(config, kept)
        if wrong == "config":
            made.rms_norm_eps = 1e-2
        return made

    def mixed_up(network_class: Any, config: Any, source: dict[str, Any], *rest: Any, **settings: Any) -> Any:
        if config.num_hidden_layers == 2 and wrong != "config":
            part = "mlp.up_proj" if wrong == "order" else "input_layernorm"
            first, second = (f"model.layers.{layer}.{part}.weight" for layer in (0, 1))
            source[first], source[second] = source[second], source[first]
        return assemble(network_class, config, source, *rest, **settings)

    monkeypatch.setattr(cut, "student_config", config_of)
    monkeypatch.setattr(cut, "assemble", mixed_up)
    with pytest.raises(RadistillError, match=r"proof failed: .*cut with nothing|proof failed: .*without the attention"):
        convert(tiny.model("llama", 3), [1], target="cut")


@pytest.mark.parametrize("family", ["gemma2", "phi3", "granitemoehybrid", "qwen3_moe", "falcon_h1"])
def test_other_classes_are_refused_by_name(family: str) -> None:
    model = tiny.model(family, 4)
    named = f"model_type='{model.anatomy.model_type}'; llama, mistral, qwen2, qwen3"
    with pytest.raises(RadistillError, match=named):
        convert(model, [1], target="cut")


def test_it_is_never_taken_unless_it_is_named() -> None:
    source = tiny.model("mistral-window", 3)
    with pytest.raises(RadistillError, match="no target can hold this model") as caught:
        target_for(source.network.config, "it")
    assert "cut" not in str(caught.value)
    assert target_for(source.network.config, "it", "cut").kind == "cut"


def test_one_layer_stays() -> None:
    with pytest.raises(RadistillError, match="1 must stay: a model has at least one layer"):
        convert(tiny.model("llama", 3), [0, 1, 2], target="cut")
    assert convert(tiny.model("llama", 3), [0, 2], target="cut").anatomy.num_layers == 1
