"""Conversion on every family: nothing replaced is the same function, replaced layers are the skip draft."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny
from radistill.conversion import GraniteHybridSettings, convert, new_parameters
from radistill.errors import RadistillError
from radistill.models.loading import Model, load

LAYERS = 6


def attention_layers(family: str) -> list[int]:
    return [1, 3, 5] if family.startswith("granitemoehybrid") else list(range(LAYERS))


def rows(time: int = 19) -> tuple[Tensor, Tensor]:
    """A full row, one padded on the left, one padded on the right; not the probe's tokens."""
    ids = torch.randint(tiny.VOCAB_SIZE, (3, time), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    mask[2, -9:] = 0
    return ids, mask


@torch.no_grad()
def logits(network: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """[tokens, vocab], at real tokens only."""
    return network(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]


def silence(model: Model, layers: list[int]) -> list[torch.utils.hooks.RemovableHandle]:
    """Attention that returns zeros, without radistill's masks."""

    def zeros(module: nn.Module, inputs: tuple, output: tuple) -> tuple:
        return torch.zeros_like(output[0]), *output[1:]

    return [model.network.model.layers[layer].self_attn.register_forward_hook(zeros) for layer in layers]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_replaced_is_bit_for_bit_the_source(family: str) -> None:
    teacher = tiny.model(family, LAYERS)
    student = convert(teacher, [])
    assert student.network.config.model_type == "granitemoehybrid"
    assert student.conversion.max_logit_difference == 0.0
    assert torch.equal(logits(student.network, *rows()), logits(teacher.network, *rows()))


@pytest.mark.parametrize("init", ["zero", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_silent_student_is_the_source_without_the_replaced_attentions(family: str, init: str) -> None:
    teacher = tiny.model(family, LAYERS)
    for replace in (attention_layers(family)[-1:], attention_layers(family)[:2]):
        student = convert(teacher, replace, init=init)
        assert student.conversion.max_start_difference == 0.0
        everything = logits(teacher.network, *rows())
        hooks = silence(teacher, replace)
        draft = logits(teacher.network, *rows())
        for hook in hooks:
            hook.remove()
        assert torch.equal(logits(student.network, *rows()), draft)
        assert not torch.equal(draft, everything)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_anatomy_and_record(family: str) -> None:
    teacher = tiny.model(family, LAYERS)
    replace = attention_layers(family)[:2]
    student = convert(teacher, replace, init="zero", seed=3)
    assert student.anatomy.attention_layers == tuple(attention_layers(family)[2:])
    assert student.anatomy.ssm_layers == tuple(sorted({*teacher.anatomy.ssm_layers, *replace}))
    assert student.tokenizer is teacher.tokenizer
    assert student.source == teacher.source
    assert not student.network.training
    record = student.conversion
    assert (record.init, record.replace, record.seed) == ("zero", tuple(replace), 3)
    assert record.kv_bytes_per_token_before == teacher.anatomy.kv_bytes_per_token()
    left = len(student.anatomy.attention_layers) / len(teacher.anatomy.attention_layers)
    assert record.kv_bytes_per_token_after == left * record.kv_bytes_per_token_before
    assert sum(record.parameters_after.values()) == sum(p.numel() for p in student.network.parameters())
    assert record.parameters_after["mlp"] == record.parameters_before["mlp"]
    assert record.to_dict()["replace"] == replace


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_student_shares_no_memory_with_the_teacher(family: str) -> None:
    teacher = tiny.model(family, LAYERS)
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    student = convert(teacher, attention_layers(family)[:1], init="random")
    tensors = [*student.network.parameters(), *student.network.buffers()]
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    taken = {tensor.untyped_storage().data_ptr() for tensor in teacher.network.parameters()}
    assert not owned & taken
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.network.parameters())


def test_comparison_shares_what_is_not_joined() -> None:
    """So that a conversion needs the teacher, the student and no third copy."""
    teacher = tiny.model("llama-tied", 2)
    from radistill.conversion.targets import TARGETS

    twin = TARGETS["granite-hybrid"].build(teacher, (), GraniteHybridSettings(), share=True)
    taken = {tensor.data_ptr() for tensor in teacher.network.parameters()}
    own = {name for name, tensor in twin.named_parameters() if tensor.data_ptr() not in taken}
    assert own == {f"model.layers.{layer}.shared_mlp.input_linear.weight" for layer in (0, 1)}


def test_tied_embeddings_stay_one_parameter() -> None:
    student = convert(tiny.model("llama-tied", 3), [1])
    assert student.network.lm_head.weight is student.network.model.embed_tokens.weight
    untied = convert(tiny.model("llama", 3), [1])
    assert untied.network.lm_head.weight is not untied.network.model.embed_tokens.weight


def test_existing_ssm_layers_and_experts_are_copied() -> None:
    teacher = tiny.model("granitemoehybrid-experts", LAYERS)
    student = convert(teacher, [3], init="random")
    source, copied = teacher.network.state_dict(), student.network.state_dict()
    assert sum("experts" in name for name in copied) == 2 * LAYERS
    for name, tensor in copied.items():
        if not name.startswith("model.layers.3.mamba."):
            assert torch.equal(tensor, source[name]), name
    assert not any("layers.3.self_attn" in name for name in copied)


def test_config_of_the_student() -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    teacher = tiny.model("llama", 3, rope_parameters=scaling, rms_norm_eps=3e-5, eos_token_id=[258, 259])
    settings = GraniteHybridSettings(groups="heads", state=12, expand=2, conv_kernel=3, chunk_size=32)
    student = convert(teacher, [1], target=settings, init="random")
    config = student.network.config
    assert config.layer_types == ["full_attention", "linear_attention", "full_attention"]
    expected = {
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 64,
        "position_embedding_type": "rope",
        "attention_multiplier": 8**-0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_bias": False,
        "rope_parameters": scaling,
        "rms_norm_eps": 3e-5,
        "eos_token_id": [258, 259],
        "bos_token_id": 257,
        "pad_token_id": 256,
        "max_position_embeddings": 512,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 8,
        "mamba_d_state": 12,
        "mamba_expand": 2,
        "mamba_d_conv": 3,
        "mamba_chunk_size": 32,
        "mamba_proj_bias": False,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    config.rope_parameters["factor"] = 99.0
    assert teacher.network.config.rope_parameters["factor"] == 8.0


def test_granite_keeps_its_multipliers() -> None:
    student = convert(tiny.model("granite", 2), [0])
    config = student.network.config
    assert (config.embedding_multiplier, config.logits_scaling) == (1.5, 2.0)
    assert (config.residual_multiplier, config.attention_multiplier) == (0.6, 0.3)


@pytest.mark.parametrize("family", ["qwen2", "llama-biased"])
def test_attention_biases(family: str) -> None:
    teacher = tiny.model(family, 2)
    student = convert(teacher, [0])
    assert student.network.config.attention_bias
    kept, source = student.network.model.layers[1].self_attn, teacher.network.model.layers[1].self_attn
    assert torch.equal(kept.k_proj.bias, source.k_proj.bias)
    wanted = torch.zeros(32) if source.o_proj.bias is None else source.o_proj.bias
    assert torch.equal(kept.o_proj.bias, wanted)


def test_a_hybrid_without_positions_stays_without() -> None:
    teacher = tiny.model("granitemoehybrid", 4, position_embedding_type=None)
    student = convert(teacher, [1])
    assert student.network.model.rotary_emb is None
    assert student.conversion.max_logit_difference == 0.0


def test_a_hybrid_architecture_without_ssm_takes_the_settings() -> None:
    teacher = tiny.model("granitemoehybrid", 3, layer_types=["full_attention"] * 3)
    student = convert(teacher, [0], target={"kind": "granite-hybrid", "groups": 2, "state": 16})
    assert (student.network.config.mamba_n_groups, student.network.config.mamba_d_state) == (2, 16)
    assert student.network.config.num_local_experts == 0


def test_generation_config_is_carried_over_and_its_own() -> None:
    teacher = tiny.model("llama", 2)
    teacher.network.generation_config.temperature = 0.3
    teacher.network.generation_config.eos_token_id = [258, 259]
    student = convert(teacher, [0])
    assert student.network.generation_config.temperature == 0.3
    student.network.generation_config.eos_token_id.append(1)
    assert teacher.network.generation_config.eos_token_id == [258, 259]


def test_teacher_in_training_mode_is_compared_without_dropout_and_left_in_it() -> None:
    teacher = tiny.model("llama", 3, attention_dropout=0.5)
    teacher.network.train()
    student = convert(teacher, [1])
    assert student.conversion.max_logit_difference == 0.0
    assert teacher.network.training
    assert not student.network.training


def test_half_precision_is_kept(tmp_path: Path) -> None:
    teacher = load(tiny.save("llama", tmp_path, 2), dtype="bfloat16")
    student = convert(teacher, [0])
    assert {parameter.dtype for parameter in student.network.parameters()} == {torch.bfloat16}
    assert student.network.config.dtype == torch.bfloat16


@dataclass
class SomePlan:
    replace: list[int]
    num_layers: int


def test_a_plan_is_taken_by_its_replace() -> None:
    teacher = tiny.model("llama", 3)
    assert convert(teacher, SomePlan([0, 2], 3)).conversion.replace == (0, 2)
    with pytest.raises(RadistillError, match="plan: num_layers is 30, but this model has 3 layers"):
        convert(teacher, SomePlan([0, 2], 30))


def test_new_parameters_names_exactly_the_new_blocks() -> None:
    teacher = tiny.model("granitemoehybrid", LAYERS)
    student = convert(teacher, [1, 5], init="random")
    found = new_parameters(student, [1, 5])
    names = {name for name, _ in student.network.named_parameters()}
    assert found == {name for name in names if name.startswith(("model.layers.1.mamba.", "model.layers.5.mamba."))}
    assert len(found) == 16
    assert new_parameters(student, []) == set()
    with pytest.raises(RadistillError, match="layer 3 of tiny granitemoehybrid has no SSM block"):
        new_parameters(student, [3])


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ([6], r"replace\[0\] is 6, but this model has layers 0 to 5"),
        ([1, -1], r"replace\[1\] is -1, but this model has layers 0 to 5"),
        ([2, 1], r"replace is \[2, 1\]; it must be sorted and without repeats"),
        ([1, 1], r"replace is \[1, 1\]; it must be sorted and without repeats"),
        (list(range(6)), "6 of 6 attention layers, and 1 must stay: transformers' cache"),
        ([1.5], "must be a list of layer numbers, or a plan"),
        ([True], "must be a list of layer numbers, or a plan"),
        ("12", "must be a list of layer numbers, or a plan"),
        (3, "must be a list of layer numbers, or a plan"),
        (None, "must be a list of layer numbers, or a plan"),
    ],
)
def test_layers_that_cannot_be_replaced(replace: object, message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        convert(tiny.model("llama", LAYERS), replace)


def test_a_layer_without_attention_cannot_be_replaced() -> None:
    teacher = tiny.model("granitemoehybrid", LAYERS)
    with pytest.raises(RadistillError, match=r"replace\[1\] is 2, but layer 2 has no attention to replace"):
        convert(teacher, [1, 2])
    with pytest.raises(RadistillError, match="replace names 3 of 3 attention layers"):
        convert(teacher, [1, 3, 5])


def test_why_one_attention_layer_must_stay() -> None:
    """transformers' cache of this architecture has no length without one. If this passes, the refusal can go."""
    network = tiny.build("granitemoehybrid", 2, layer_types=["linear_attention"] * 2)
    with pytest.raises(ValueError, match="get_seq_length"):
        network.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)


@pytest.mark.parametrize(
    ("family", "feature"),
    [
        ("qwen3", "QK-norm"),
        ("mixtral", "mixture of experts"),
        ("mistral-window", "sliding-window attention"),
        ("qwen2-window", "sliding-window attention"),
        ("llama-head-size", "head size 10"),
        ("llama-mlp-bias", "MLP bias"),
        ("llama-gelu", "activation gelu"),
    ],
)
def test_models_that_cannot_be_held_are_refused_by_feature(family: str, feature: str) -> None:
    with pytest.raises(RadistillError, match=f"tiny {family}: granite-hybrid cannot hold this model: .*{feature}"):
        convert(tiny.model(family, 2), [0], target="granite-hybrid")


def test_a_model_that_no_target_can_hold_is_told_why() -> None:
    with pytest.raises(
        RadistillError,
        match=r"tiny gemma2: no target .* \(granite-hybrid: norms after .*; qwen3.5: another architecture",
    ):
        convert(tiny.model("gemma2", 2), [0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("granite", "target: 'granite' is unknown; choose from granite-hybrid"),
        ({"kind": None}, "target: None is unknown"),
        ({"kind": "granite-hybrid", "heads": 3}, "target.heads: Extra inputs are not permitted"),
        ({"kind": "granite-hybrid", "groups": 0}, "target.groups: .*greater than or equal to 1.* or .*'heads'.*got 0"),
        ({"kind": "granite-hybrid", "groups": True}, "target.groups: .*valid integer"),
        ({"kind": "granite-hybrid", "expand": 1.5}, "target.expand: .*valid integer"),
        ({"kind": "granite-hybrid", "groups": 3}, "target.groups is 3, which does not divide the 4 SSM heads"),
    ],
)
def test_targets_that_do_not_exist_or_fit(target: object, message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        convert(tiny.model("llama", 2), [0], target=target)


def test_settings_that_conflict_with_the_source_s_own_blocks() -> None:
    teacher = tiny.model("granitemoehybrid", 4)
    with pytest.raises(RadistillError, match=r"target.state is 16, but this model's SSM layers have 8.*leave the"):
        convert(teacher, [1], target={"kind": "granite-hybrid", "state": 16})
    agreed = {"kind": "granite-hybrid", "state": 8, "groups": 1, "expand": 1, "conv_kernel": 4, "chunk_size": 32}
    assert convert(teacher, [1], target=agreed).network.config.mamba_chunk_size == 32


def test_other_arguments_that_are_refused() -> None:
    teacher = tiny.model("llama", 2)
    with pytest.raises(RadistillError, match="init: 'copy' is unknown; choose from zero, transfer, random, fitted"):
        convert(teacher, [0], init="copy")
    with pytest.raises(RadistillError, match="seed is -1"):
        convert(teacher, [0], seed=-1)


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_converts_exactly(smollm2: Model) -> None:
    replace = [3, 6, 7, 9, 11, 14, 20, 25, 28, 29]
    text = "Rice, beans and a little lime: that is all a good lunch needs."
    ids = torch.tensor([smollm2.tokenizer(text)["input_ids"]])
    same = convert(smollm2, [])
    assert same.conversion.max_logit_difference == 0.0
    everything = logits(smollm2.network, ids, torch.ones_like(ids))
    assert torch.equal(logits(same.network, ids, torch.ones_like(ids)), everything)
    del same

    student = convert(smollm2, replace, init="zero")
    assert student.conversion.max_start_difference == 0.0
    assert student.conversion.kv_bytes_per_token_after * 3 == student.conversion.kv_bytes_per_token_before * 2
    hooks = silence(smollm2, replace)
    draft = logits(smollm2.network, ids, torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    assert torch.equal(logits(student.network, ids, torch.ones_like(ids)), draft)
    assert (draft - everything).abs().max() > 0.1
