"""Qwen3 in Qwen3.5's stock class: what it computes stays, and a wrong copy is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3_5ForConditionalGeneration

import tiny
from radistill.conversion import convert
from radistill.conversion.targets import DEFAULT, TARGETS, qwen3_5, target_for, target_settings
from radistill.errors import RadistillError
from radistill.mixers import use_fast_paths
from radistill.models.anatomy import anatomy_of
from radistill.models.cache_names import cache_argument, cache_of
from radistill.models.loading import Model, load, load_config

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("qwen3", {}),
    "tied": ("qwen3-tied", {}),
    "biased": ("qwen3-biased", {}),
    "wide heads": ("qwen3", {"head_dim": 32}),
    "odd heads": ("qwen3", {"head_dim": 10, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "yarn": ("qwen3", {"rope_parameters": YARN}),
    "llama3": ("qwen3", {"rope_parameters": LLAMA3}),
    "experts": ("qwen3_moe", {}),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Model:
    family, settings = SOURCES[request.param]
    return tiny.model(family, 4, **settings)


def test_nothing_replaced_computes_the_same(source: Model) -> None:
    student = convert(source, [])
    assert student.conversion.target["kind"] == "qwen3.5"
    assert student.conversion.max_logit_difference == 0.0  # no weight of the tiny norms is far from one
    assert type(student.network).__name__ in ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
    ids = torch.randint(4, 250, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    assert torch.equal(student.network.generate(ids, **settings), source.network.generate(ids, **settings))


@pytest.mark.parametrize("init", ["zero", "random"])
def test_a_silent_start_is_the_source_without_these_attentions(source: Model, init: str) -> None:
    student = convert(source, [0, 2], init=init)
    assert student.conversion.max_start_difference == 0.0
    assert student.network.config.layer_types == ["linear_attention", "full_attention"] * 2
    geometry = TARGETS["qwen3.5"].geometry(source.network.config, qwen3_5.Qwen35Settings())
    shape = source.anatomy
    assert (geometry.key_heads, geometry.value_heads) == (shape.num_kv_heads, shape.num_heads)
    assert (geometry.key_dim, geometry.value_dim) == (shape.head_dim, shape.head_dim)


def test_saved_it_is_a_stock_model(source: Model, tmp_path: Path) -> None:
    student = convert(source, [1], init="random")
    with torch.no_grad():
        torch.nn.init.normal_(student.network.model.layers[1].linear_attn.out_proj.weight, std=0.1)
    student.save(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(4, 250, (1, 150), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        reference = student.network(ids).logits
        torch.testing.assert_close(stock(ids).logits, reference, rtol=0, atol=2e-4)
        # A prompt in two parts and then token by token, through the cache.
        first = stock(ids[:, :70], use_cache=True)
        kept: dict[str, Any] = {cache_argument(stock): cache_of(first), "use_cache": True}
        rest = [stock(ids[:, 70:140], **kept).logits]
        rest += [stock(ids[:, n : n + 1], **kept).logits for n in range(140, 150)]
        torch.testing.assert_close(torch.cat([first.logits, *rest], dim=1), reference, rtol=0, atol=2e-4)
    assert load(tmp_path).fingerprint == student.fingerprint


BROKEN = {
    "a norm as it was": lambda name, old, new: (
        old if name.endswith("layers.2.post_attention_layernorm.weight") else new
    ),
    "a QK-norm as it was": lambda name, old, new: old if name.endswith("layers.1.self_attn.k_norm.weight") else new,
    "the last norm as it was": lambda name, old, new: old if name == "model.norm.weight" else new,
    "an output not doubled": lambda name, old, new: old if name.endswith("layers.3.self_attn.o_proj.weight") else new,
    "a gate that is not zero": lambda name, old, new: (
        torch.cat([new[:-1], old[-1:]]) if name.endswith("layers.0.self_attn.q_proj.weight") else new
    ),
    "gates after all queries": lambda name, old, new: (
        torch.cat([old, torch.zeros_like(old)]) if ".self_attn.q_proj." in name else new
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_wrong_copy_is_refused(fault: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load(tiny.save("qwen3", tmp_path, 4), dtype=dtype)
    right = qwen3_5._written

    def wrong(name: str, tensor: Tensor, head_dim: int) -> Tensor:
        return BROKEN[fault](name, tensor, right(name, tensor, head_dim))

    assert convert(source, [1]).conversion.max_logit_difference == 0.0
    monkeypatch.setattr(qwen3_5, "_written", wrong)
    with pytest.raises(RadistillError, match=r"proof failed: qwen3.5 with nothing replaced should compute what"):
        convert(source, [1])


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 1e4}, {"partial_rotary_factor": 0.5, "rope_type": "default"}],
    ids=["theta", "partial"],
)
def test_wrong_positions_are_refused(rope: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = qwen3_5.Qwen35.student_config

    def wrong(*args: Any) -> Any:
        config = right(*args)
        config.rope_parameters = {**config.rope_parameters, **rope}
        return config

    monkeypatch.setattr(qwen3_5.Qwen35, "student_config", wrong)
    with pytest.raises(RadistillError, match="proof failed"):
        convert(tiny.model("qwen3", 4, rope_parameters={"rope_type": "default", "rope_theta": 1e6}), [1])


def test_small_norm_weights_lose_bits_in_bfloat16_and_no_more_than_stated(tmp_path: Path) -> None:
    network = tiny.build("qwen3", 4)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("norm.weight"):
                weight.copy_(torch.linspace(0.03, 3.0, len(weight)))
    network.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    source = load(tmp_path, dtype="bfloat16")
    student = convert(source, [])
    assert 0 < student.conversion.max_logit_difference < 0.1
    stored = dict(student.network.named_parameters())
    for name, weight in source.network.named_parameters():
        if name.endswith("norm.weight"):
            error = (1 + stored[name].double() - weight.double()).abs()
            assert error.max() <= 2**-9
            assert error[(weight >= 0.5) & (weight <= 2)].eq(0).all()
    assert convert(load(tmp_path), []).conversion.max_logit_difference < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_refusal_for_lost_bits_names_the_way_out(dtype: str, tmp_path: Path) -> None:
    network = tiny.build("qwen3", 4)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("norm.weight"):
                weight.mul_(0.01)
    network.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RadistillError, match=r"proof failed: .* lose bits in this dtype, so take float32$"):
        convert(load(tmp_path, dtype=dtype), [1])
    assert convert(load(tmp_path), [1]).conversion.max_logit_difference < 1e-6


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_a_model_of_its_own_kind_is_converted_further(family: str) -> None:
    source = tiny.model(family, 4)
    use_fast_paths(source.network)
    assert source.anatomy.ssm_layers == (0, 2)
    student = convert(source, [1], init="random")
    assert student.conversion.max_logit_difference == student.conversion.max_start_difference == 0.0
    assert student.anatomy.ssm_layers == (0, 1, 2)
    kept, new = (student.network.model.layers[layer].linear_attn for layer in (0, 1))
    assert {name: value.shape for name, value in new.named_parameters()} == {
        name: value.shape for name, value in kept.named_parameters()
    }
    with pytest.raises(RadistillError, match=r"target.key_heads is 4, but this model's linear layers have 2"):
        convert(source, [1], target={"kind": "qwen3.5", "key_heads": 4})


def test_of_a_model_that_reads_images_too_the_text_part_is_converted(tmp_path: Path) -> None:
    folder = tiny.save_with_vision(tmp_path / "both")
    whole = Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()
    assert load_config(folder).model_type == "qwen3_5_text"
    convert(load(folder), []).save(tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.randint(4, 250, (1, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, whole(input_ids=ids).logits)
    assert convert(load(folder), [1], init="random").anatomy.ssm_layers == (0, 1, 2)


def test_the_shared_expert_stays_silent_in_training() -> None:
    student = convert(tiny.model("qwen3_moe", 2), [0], init="random")
    network = student.network.train()
    ids = torch.randint(4, 250, (2, 16))
    network(input_ids=ids, labels=ids).loss.backward()
    for layer in network.model.layers:
        for parameter in layer.mlp.shared_expert.parameters():
            assert parameter.eq(0).all()
            assert parameter.grad is not None
            assert parameter.grad.eq(0).all()


def test_zero_learns_and_nothing_else_could_be_zero() -> None:
    """Gradients reach `in_proj_z` at once and everything after one step; with all of `in_proj` zero none would."""
    source = tiny.model("qwen3", 2)
    ids = torch.randint(4, 250, (2, 16), generator=torch.Generator().manual_seed(3))

    def reached(block: nn.Module, network: nn.Module) -> set[str]:
        network.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        return {name for name, value in block.named_parameters() if value.grad is not None and value.grad.any()}

    student = convert(source, [0], init="zero")
    block: Any = student.network.model.layers[0].linear_attn
    assert reached(block, student.network) == {"in_proj_z.weight"}
    with torch.no_grad():
        block.in_proj_z.weight -= 0.5 * block.in_proj_z.weight.grad
    assert reached(block, student.network) == {name for name, _ in block.named_parameters()}
    with torch.no_grad():
        block.in_proj_z.weight.zero_()
        block.in_proj_qkv.weight.zero_()
    assert reached(block, student.network) == set()


def test_transfer_copies_head_to_head() -> None:
    source = tiny.model("qwen3", 3)
    student = convert(source, [1], target={"kind": "qwen3.5", "key_heads": "heads"}, init="transfer")
    attention, block = source.network.model.layers[1].self_attn, student.network.model.layers[1].linear_attn
    inputs = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(4))
    q, k, v = block.in_proj_qkv(inputs).unflatten(-1, (3, 4, 8)).unbind(2)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(a, b, dim=-1)

    queries = attention.q_norm(attention.q_proj(inputs).unflatten(-1, (4, 8)))
    keys = attention.k_norm(attention.k_proj(inputs).unflatten(-1, (2, 8))).repeat_interleave(2, dim=2)
    torch.testing.assert_close(cosine(q, queries), torch.ones(1, 1, 4))
    torch.testing.assert_close(cosine(k, keys), torch.ones(1, 1, 4))
    torch.testing.assert_close(v, attention.v_proj(inputs).unflatten(-1, (2, 8)).repeat_interleave(2, dim=2))
    assert torch.equal(block.out_proj.weight, attention.o_proj.weight)
    # Qwen3.5's own attention stores norms minus one and a gate beside the query.
    twin = convert(source, [])
    again = convert(twin, [1], target={"kind": "qwen3.5", "key_heads": "heads"}, init="transfer")
    torch.testing.assert_close(again.network.model.layers[1].linear_attn.in_proj_qkv.weight, block.in_proj_qkv.weight)


@pytest.mark.parametrize(
    ("family", "settings", "init", "message"),
    [
        ("qwen3", {}, "transfer", "set key_heads: heads"),
        ("qwen3-biased", {"key_heads": "heads"}, "transfer", "the biases of q, k and v have no place"),
        ("qwen3", {"key_heads": "heads", "key_dim": 16}, "transfer", "leave key_dim and value_dim out"),
        ("qwen3", {"value_dim": 16}, "zero", "out_proj takes 4 value heads of 16 channels and o_proj gives 4 of 8"),
        ("qwen3", {"key_heads": 3}, "random", "target.key_heads is 3, which does not divide the 4 value heads"),
        ("qwen3_moe-shares", {}, "random", "shares of the chosen experts that do not add up to one"),
        ("llama", {}, "random", "another architecture than it is made for .model_type='llama'"),
    ],
)
def test_what_does_not_fit_is_named(family: str, settings: dict[str, Any], init: str, message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        convert(tiny.model(family, 2), [0], target={"kind": "qwen3.5", **settings}, init=init)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"key_heads": "heads"}, "qwen3.5"), ({"groups": "heads"}, "granite-hybrid"), ({"conv_kernel": 3}, DEFAULT)],
)
def test_fields_tell_a_target_that_is_not_named(fields: dict[str, Any], kind: str) -> None:
    assert target_settings(fields).kind == kind


def test_a_target_that_cannot_hold_the_source_names_the_one_that_can() -> None:
    with pytest.raises(RadistillError, match=r"QK-norm .qwen3.; take the target qwen3.5$"):
        convert(tiny.model("qwen3", 2), [0], target="granite-hybrid")
    with pytest.raises(RadistillError, match=r"another architecture .*; take the target granite-hybrid$"):
        convert(tiny.model("llama", 2), [0], target="qwen3.5")


def test_windows_are_refused() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    with pytest.raises(RadistillError, match=r"sliding-window attention .sliding_window=64"):
        convert(tiny.model("qwen3", 2, **windowed), [0])


def test_why_one_attention_layer_must_stay() -> None:
    """transformers' cache of this architecture has no length without one. If this passes, the refusal can go."""
    network = tiny.build("qwen3_5_text", 2, layer_types=["linear_attention"] * 2)
    with pytest.raises(ValueError, match="get_seq_length"):
        network.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)


def test_the_first_target_that_holds_a_model_is_taken() -> None:
    for family in [*tiny.FAMILIES, *tiny.QWEN35]:
        expected = "granite-hybrid" if family in tiny.FAMILIES else "qwen3.5"
        assert target_for(tiny.build(family, 2).config, "it").kind == expected
    assert anatomy_of(tiny.build("qwen3", 2)).ssm_layers == ()
