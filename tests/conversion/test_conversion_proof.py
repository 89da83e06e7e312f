"""The proof must be able to fail: each way of building the target wrongly is caught before a student exists."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

import tiny
from radistill.conversion import convert
from radistill.conversion.probe import TOLERANCE, probe_batch, prove_equal
from radistill.conversion.targets import granite_hybrid
from radistill.errors import RadistillError
from radistill.mixers.mamba2 import MAMBA2

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def break_config(monkeypatch: pytest.MonkeyPatch, field: str, value: object) -> None:
    """Let the target write one wrong value into every config it makes."""
    right = granite_hybrid.GraniteHybrid.student_config

    def wrong(*args: Any, **kwargs: Any) -> PreTrainedConfig:
        config = right(*args, **kwargs)
        setattr(config, field, value)
        return config

    monkeypatch.setattr(granite_hybrid.GraniteHybrid, "student_config", wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_multiplier", 1.0),
        ("residual_multiplier", 0.99),
        ("embedding_multiplier", 1.01),
        ("logits_scaling", 1.01),
        ("position_embedding_type", None),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 20000.0}),
        ("rms_norm_eps", 1e-2),
        ("hidden_act", "gelu"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "granite"])
def test_a_wrong_config_is_caught(monkeypatch: pytest.MonkeyPatch, family: str, field: str, value: object) -> None:
    teacher = tiny.model(family, 3)
    break_config(monkeypatch, field, value)
    with pytest.raises(RadistillError, match="proof failed: granite-hybrid with nothing replaced should compute"):
        convert(teacher, [1])


SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        {"rope_type": "yarn", **SCALED},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "longrope", **SCALED, **FACTORS},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rotary_scaling_is_carried(scaling: dict[str, Any]) -> None:
    student = convert(tiny.model("llama", 3, rope_parameters=scaling), [1])
    assert student.conversion.max_logit_difference == 0.0
    assert student.network.config.rope_parameters["rope_type"] == scaling["rope_type"]


def test_lost_rotary_scaling_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows only at positions far from the start, which a short probe would not reach."""
    teacher = tiny.model("llama", 3, rope_parameters=LLAMA3)
    assert convert(teacher, [1]).conversion.max_logit_difference == 0.0
    break_config(monkeypatch, "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    with pytest.raises(RadistillError, match="proof failed"):
        convert(teacher, [1])


def test_up_over_gate_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = granite_hybrid._source_names
    monkeypatch.setattr(granite_hybrid, "_source_names", lambda name: right(name)[::-1])
    with pytest.raises(RadistillError, match=r"logits differ by up to .*; allowed is .* \(0.0001 times"):
        convert(tiny.model("llama", 3), [])


def test_a_block_that_is_not_silent_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MAMBA2.initialisations["random"]

    def loud(mixer: Any, attention: Any, context: Any) -> None:
        right.fill(mixer, attention, context)
        mixer.out_proj.weight.fill_(0.1)

    monkeypatch.setitem(MAMBA2.initialisations, "random", dataclasses.replace(right, fill=loud))
    with pytest.raises(RadistillError, match=r"proof failed: the student should start as .* layers \[1\], but"):
        convert(tiny.model("llama", 3), [1], init="random")


def test_parameters_without_a_counterpart_are_named() -> None:
    teacher = tiny.model("llama", 2)
    teacher.network.model.layers[1].self_attn.q_norm = torch.nn.LayerNorm(8)
    with pytest.raises(RadistillError, match=r"no place for the source model's model.layers.1.self_attn.q_norm.weight"):
        convert(teacher, [0])
    teacher = tiny.model("llama", 2)
    del teacher.network.model.layers[0].mlp.up_proj
    with pytest.raises(RadistillError, match=r"source model has no model.layers.0.mlp.gate_proj.weight or .*up_proj"):
        convert(teacher, [1])


def test_a_source_that_computes_nan_is_refused() -> None:
    teacher = tiny.model("llama", 2)
    with torch.no_grad():
        teacher.network.model.norm.weight[0] = torch.nan
    with pytest.raises(RadistillError, match="differ by up to nan"):
        convert(teacher, [1])


@pytest.mark.parametrize("tolerance", [TOLERANCE, 0.1])
def test_tolerance_is_relative_to_the_logits(tolerance: float) -> None:
    reference = torch.full((2, 3), 100.0, dtype=torch.float64)
    within, beyond = reference.clone(), reference.clone()
    within[0, 0] += 99 * tolerance
    beyond[0, 0] += 101 * tolerance
    assert prove_equal(reference, within, "a is b", tolerance) == pytest.approx(99 * tolerance, rel=1e-3)
    with pytest.raises(RadistillError, match="proof failed: a is b, but"):
        prove_equal(reference, beyond, "a is b", tolerance)


def test_probe_holds_every_kind_of_row() -> None:
    probe, again = probe_batch(50, 8192), probe_batch(50, 8192)
    assert torch.equal(probe.input_ids, again.input_ids)
    assert int(probe.input_ids.max()) < 50
    full, right, left, single = probe.attention_mask.tolist()
    assert set(full) == {1}
    assert right == sorted(right, reverse=True)
    assert left == sorted(left)
    assert right[-1] == left[0] == 0
    assert single == [1] + [0] * (len(single) - 1)
    assert probe.positions[0, 0] == 0
    assert probe.positions[0, -1] == 8191
