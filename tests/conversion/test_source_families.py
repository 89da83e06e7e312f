"""Sources whose parts are stored in another way than Llama's: fused projections, rotary embeddings by length."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from radistill.conversion import TARGETS, convert
from radistill.errors import RadistillError
from radistill.models.architectures import ARCHITECTURES
from radistill.models.generation import generate
from radistill.models.loading import load
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask
from small_recipe import small_recipe

PHI = ["phi3", "phi3-longrope"]


def as_llama(family: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A tiny Phi-3, and the Llama with the same weights, split by hand."""
    phi, llama = tiny.build(family), tiny.build("llama")
    weights = {}
    for name, tensor in phi.state_dict().items():
        if "qkv_proj" in name:
            for part, rows in (("q_proj", tensor[:32]), ("k_proj", tensor[32:48]), ("v_proj", tensor[48:])):
                weights[name.replace("qkv_proj", part)] = rows
        elif "gate_up_proj" in name:
            for part, rows in (("gate_proj", tensor[:64]), ("up_proj", tensor[64:])):
                weights[name.replace("gate_up_proj", part)] = rows
        else:
            weights[name] = tensor
    llama.load_state_dict(weights)
    return phi, llama


def test_phi3_is_a_llama_with_fused_projections() -> None:
    """What the split rests on, checked against transformers itself: query, key, value; gate, up."""
    phi, llama = as_llama("phi3")
    llama.config.rms_norm_eps = phi.config.rms_norm_eps
    for module in llama.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = phi.config.rms_norm_eps
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(llama(ids).logits, phi(ids).logits)


@pytest.mark.parametrize("init", ["zero", "random", "transfer"])
def test_new_blocks_start_from_fused_projections_as_from_separate_ones(init: str) -> None:
    phi, llama = as_llama("phi3")
    target = {"groups": "heads", "state": 8} if init == "transfer" else {}
    students = []
    for network, family in ((phi, "phi3"), (llama, "llama")):
        model = tiny.model(family)
        model.network.load_state_dict(network.state_dict())
        students.append(convert(model, [0, 2], init=init, target={"kind": "granite-hybrid", **target}).network)
    of_phi, of_llama = (student.state_dict() for student in students)
    assert of_phi.keys() == of_llama.keys()
    for name, tensor in of_llama.items():
        assert torch.equal(of_phi[name], tensor), name


@pytest.mark.parametrize("part", ["self_attn.qkv_proj", "mlp.gate_up_proj"])
def test_parts_in_another_order_are_refused_by_the_proof(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("phi3", num_key_value_heads=4)
    entry = model.anatomy.architecture
    wrong = dataclasses.replace(entry, fused={**entry.fused, part: entry.fused[part][::-1]})
    monkeypatch.setitem(ARCHITECTURES, "phi3", wrong)
    with pytest.raises(RadistillError, match="proof failed: granite-hybrid with nothing replaced"):
        convert(model, [1])


def test_longrope_changes_with_the_length_in_the_student_as_in_the_source() -> None:
    """Texts of more than 64 tokens are rotated by the long factors; the student must switch where the source does."""
    model = tiny.model("phi3-longrope")
    twin = convert(model, []).network
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, (2, 90), generator=generator)
    with torch.no_grad():
        for length in (20, 64, 65, 90, 30):
            expected = model.network(ids[:, :length]).logits
            assert torch.equal(twin(ids[:, :length]).logits, expected), length
        # The switch is seen: the same first tokens, read as part of a longer text, have other logits.
        longer = model.network(ids).logits[:, :64]
        assert (longer - model.network(ids[:, :64]).logits).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("family", PHI)
def test_a_whole_run_on_phi3(family: str, tmp_path: Path) -> None:
    """The search by replaceability fits a block to every attention, so fused projections meet every stage."""
    tiny.save(family, tmp_path / "model")
    recipe = small_recipe(
        tmp_path,
        {"source": "teacher", "max_new_tokens": 8},
        diagnose={"budget": 2},
        align={"steps": 12},
        distill={"steps": 6, "tokens_per_batch": 200, "eval_steps": 3},
        evaluate={"max_new_tokens": 8},
        arms={"zero": {"by": "redundancy", "init": "zero", "align": None}},
    )
    estimated = estimate(load_recipe(recipe))
    out = run(load_recipe(recipe), tmp_path / "out")
    student = load(out / "student")
    assert len(student.anatomy.ssm_layers) == 2
    counts = student.anatomy.parameters(student.network)
    assert estimated.models[1].total == sum(counts.values())
    network = AutoModelForCausalLM.from_pretrained(out / "student")
    assert network.config.model_type == "granitemoehybrid"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(network(ids).logits, student.network(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_card_says_what_longrope_means_for_a_generation() -> None:
    target = TARGETS["granite-hybrid"]
    said = target.remarks(convert(tiny.model("phi3-longrope"), [1]).network.config)
    assert any("one way up to 64 tokens" in remark for remark in said)
    assert not any("longrope" in remark for remark in target.remarks(convert(tiny.model("phi3"), [1]).network.config))


def test_decoding_with_drafts_stays_on_one_side_of_the_switch() -> None:
    model = tiny.model("phi3-longrope")
    rng = random.Random(0)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in (20, 30, 80, 90)]
    mask = ComponentMask.attention([1])
    for part in (prompts[:2], prompts[2:]):
        expected = generate(model, part, max_new_tokens=12)
        decoded = speculative_generate(model, part, mask, draft_length=3, max_new_tokens=12, batch_size=2)
        assert decoded.responses == expected
    for part, new in ((prompts, 4), (prompts[:1], 50), ([prompts[3][:65]], 4)):
        with pytest.raises(RadistillError, match="rotates texts of more than 64 tokens in another way"):
            speculative_generate(model, part, mask, draft_length=3, max_new_tokens=new)
    speculative_generate(model, [prompts[3][:66]], mask, draft_length=3, max_new_tokens=2)
    speculative_generate(model, [prompts[3][:60]], mask, draft_length=3, max_new_tokens=4)
