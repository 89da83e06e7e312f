"""Each initialisation against what its paper says: values, determinism, preconditions, gradients of the first step."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from radistill.conversion import ConvertedModel, convert, new_parameters
from radistill.conversion.targets import interface
from radistill.conversion.targets.granite_hybrid import GraniteHybridSettings
from radistill.errors import RadistillError
from radistill.mixers.mamba2 import MAMBA2
from radistill.mixers.mamba2.starts import fill_zero

INITIALISATIONS = MAMBA2.initialisations

PER_HEAD = GraniteHybridSettings(groups="heads")
HIDDEN, HEADS, HEAD_DIM = 32, 4, 8


def target_of(init: str) -> GraniteHybridSettings:
    return PER_HEAD if init == "transfer" else GraniteHybridSettings()


def block(student: ConvertedModel, layer: int) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in student.network.model.layers[layer].mamba.named_parameters()}


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_published_part(init: str) -> None:
    values = block(convert(tiny.model("llama", 3), [1], init=init, target=target_of(init)), 1)
    decay, step = values["A_log"].exp(), F.softplus(values["dt_bias"])
    assert decay.shape == step.shape == (HEADS,)
    assert (decay >= 1).all()
    assert (decay <= 16).all()
    assert (step >= 0.99e-3).all()
    assert (step <= 1.01e-1).all()
    assert len(set(decay.tolist())) == len(set(step.tolist())) == HEADS
    assert (values["D"] == 1).all()
    assert (values["norm.weight"] == 1).all()


def test_published_ranges_are_filled() -> None:
    """Over many heads: -A uniform in [1, 16], the step size log-uniform in [1e-3, 1e-1]."""
    teacher = tiny.model("llama", 3, hidden_size=512, num_attention_heads=256, num_key_value_heads=256)
    values = block(convert(teacher, [1], init="random"), 1)
    decay, step = values["A_log"].exp(), F.softplus(values["dt_bias"]).log10()
    assert decay.mean() == pytest.approx(8.5, abs=0.9)
    assert decay.min() < 1.5
    assert decay.max() > 15.5
    assert step.mean() == pytest.approx(-2, abs=0.12)
    assert step.min() < -2.9
    assert step.max() > -1.1
    for name, bound in (("conv1d.weight", 0.5), ("conv1d.bias", 0.5), ("in_proj.weight", 512**-0.5)):
        assert values[name].abs().max() == pytest.approx(bound, rel=0.01)
        assert values[name].std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_zero() -> None:
    teacher = tiny.model("llama", 3)
    values = block(convert(teacher, [1], init="zero"), 1)
    assert values["in_proj.weight"].shape == (2 * HIDDEN + 2 * HEAD_DIM + HEADS, HIDDEN)
    assert not values["in_proj.weight"].any()
    assert torch.equal(values["out_proj.weight"], teacher.network.model.layers[1].self_attn.o_proj.weight)
    assert values["conv1d.weight"].shape == (HIDDEN + 2 * HEAD_DIM, 1, 4)
    assert values["conv1d.bias"].abs().max() > 0.1


def test_random() -> None:
    values = block(convert(tiny.model("llama", 3), [1], init="random"), 1)
    assert not values["out_proj.weight"].any()
    assert values["in_proj.weight"].std() > 0.05


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama-biased"])
def test_transfer_feeds_the_recurrence_what_attention_projects(family: str) -> None:
    """After the convolution and before its SiLU: x, B, C are V, K, Q, per query head; biases included."""
    teacher = tiny.model(family, 3)
    student = convert(teacher, [1], init="transfer", target=PER_HEAD)
    mixer, attention = student.network.model.layers[1].mamba, teacher.network.model.layers[1].self_attn
    hidden = torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, recurrent, _ = mixer.in_proj(hidden).split([HIDDEN, 3 * HIDDEN, HEADS], dim=-1)
        x, b, c = mixer.conv1d(recurrent.transpose(1, 2))[..., :7].transpose(1, 2).split(HIDDEN, dim=-1)
        value, key, query = attention.v_proj(hidden), attention.k_proj(hidden), attention.q_proj(hidden)
    for head in range(HEADS):
        mine = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        shared = slice(head // 2 * HEAD_DIM, (head // 2 + 1) * HEAD_DIM)  # two query heads to a KV head
        torch.testing.assert_close(x[..., mine], value[..., shared])
        torch.testing.assert_close(b[..., mine], key[..., shared])
        torch.testing.assert_close(c[..., mine], query[..., mine])
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
    assert mixer.in_proj.weight[:HIDDEN].std() > 0.05  # z


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_a_layer_s_draw_depends_on_the_seed_and_the_layer_alone(init: str) -> None:
    teacher, target = tiny.model("llama", 5), target_of(init)
    alone = block(convert(teacher, [2], init=init, target=target), 2)
    together = convert(teacher, [1, 2, 3], init=init, target=target)
    torch.manual_seed(123)
    other = block(convert(teacher, [2], init=init, target=target, seed=1), 2)
    assert all(torch.equal(value, block(together, 2)[name]) for name, value in alone.items())
    assert not torch.equal(alone["A_log"], block(together, 1)["A_log"])
    assert not torch.equal(alone["A_log"], other["A_log"])


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite", "granitemoehybrid"])
@pytest.mark.parametrize("init", INITIALISATIONS)
def test_gradients_of_the_first_step(init: str, family: str) -> None:
    hybrid = family == "granitemoehybrid"
    teacher = tiny.model(family, 4, **({"mamba_n_groups": 4} if hybrid else {}))
    target = GraniteHybridSettings() if hybrid else target_of(init)
    student = convert(teacher, [1], init=init, target=target)
    ids = torch.randint(tiny.VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(1))
    student.network.train()
    logits = student.network(input_ids=ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    new = new_parameters(student, [1])
    gradients = {name: value.grad for name, value in student.network.named_parameters() if name in new}
    norms = {name.removeprefix("model.layers.1.mamba."): float(grad.norm()) for name, grad in gradients.items()}
    print(init, family, {name: f"{norm:.2e}" for name, norm in norms.items()})
    assert all(grad.isfinite().all() for grad in gradients.values())
    if init == "transfer":
        assert all(norms.values())
    elif init in ("random", "fitted"):
        assert {name for name, norm in norms.items() if norm} == {"out_proj.weight"}
    else:
        # The gate silu(z) is zero, so only z's rows move; and they only because the convolution's bias is not zero.
        assert {name for name, norm in norms.items() if norm} == {"in_proj.weight"}
        rows = gradients["model.layers.1.mamba.in_proj.weight"]
        assert rows[:HIDDEN].any(dim=1).all()
        assert not rows[HIDDEN:].any()


@pytest.mark.parametrize(
    ("init", "target", "message"),
    [
        (
            "zero",
            {"expand": 2},
            "expand is 2, so out_proj takes 64 channels and o_proj gives 32; set expand: 1",
        ),
        ("transfer", {}, r"groups is 1; set groups: heads \(4\) or another init"),
        ("transfer", {"groups": 2}, r"groups is 2; set groups: heads \(4\)"),
        ("transfer", {"groups": "heads", "state": 16}, "state is 16, but keys have 8 channels; leave state out"),
        (
            "transfer",
            {"groups": "heads", "expand": 2},
            "expand: 2 makes 8 SSM heads of 8 channels for 4",
        ),
    ],
)
def test_preconditions_are_checked_before_weights_are_copied(
    monkeypatch: pytest.MonkeyPatch, init: str, target: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(interface, "assemble", lambda *args, **kwargs: pytest.fail("weights were touched"))
    with pytest.raises(RadistillError, match=f"init {init} does not fit these blocks: .*{message}"):
        convert(tiny.model("llama", 3), [1], init=init, target={"kind": "granite-hybrid", **target})


def test_preconditions_of_a_source_without_convolution_bias() -> None:
    teacher = tiny.model("granitemoehybrid", 4, mamba_conv_bias=False, mamba_n_groups=4)
    with pytest.raises(RadistillError, match="no convolution bias, so no gradient would ever reach them"):
        convert(teacher, [1], init="zero")
    assert convert(teacher, [1], init="random").conversion.max_start_difference == 0.0
    convert(teacher, [1], init="transfer")
    biased = tiny.model("granitemoehybrid", 4, mamba_conv_bias=False, mamba_n_groups=4, attention_bias=True)
    with pytest.raises(RadistillError, match="biases of q, k and v have no place"):
        convert(biased, [1], init="transfer")


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_projection_biases_of_a_source_s_blocks_are_filled(init: str) -> None:
    teacher = tiny.model("granitemoehybrid", 4, mamba_proj_bias=True, mamba_n_groups=4, attention_bias=True)
    values = block(convert(teacher, [1], init=init), 1)
    assert not values["in_proj.bias"].any()
    copied = torch.equal(values["out_proj.bias"], teacher.network.model.layers[1].self_attn.o_proj.bias)
    assert copied == (init == "transfer")


def test_a_parameter_that_no_initialiser_wrote_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(mixer: object, attention: object, context: object) -> None:
        fill_zero(mixer, attention, context)
        mixer.dt_bias[2] = torch.nan

    monkeypatch.setitem(INITIALISATIONS, "zero", dataclasses.replace(INITIALISATIONS["zero"], fill=forgetful))
    with pytest.raises(RadistillError, match="init zero left NaN in layer 1: dt_bias"):
        convert(tiny.model("llama", 3), [1], init="zero")
    idle = dataclasses.replace(INITIALISATIONS["zero"], fill=lambda mixer, attention, context: None)
    monkeypatch.setitem(INITIALISATIONS, "zero", idle)
    with pytest.raises(RadistillError, match="init zero left NaN in layer 1: "):
        convert(tiny.model("llama", 3), [1], init="zero")
