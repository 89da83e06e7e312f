"""A mixer and a target that radistill has never heard of go through all of it: two registrations, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from toy.mixer import AVERAGE
from toy.target import ToyConfig, ToyForCausalLM, ToyHybrid, ToySettings
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import tiny
from radistill.conversion import TARGETS, convert
from radistill.conversion.targets import register_target
from radistill.distillation.align import AlignSettings, align
from radistill.distillation.blocks import fit_blocks
from radistill.errors import RadistillError
from radistill.export import export
from radistill.files import read_json
from radistill.mixers import MIXERS, register_mixer
from radistill.models.architectures import ARCHITECTURES
from radistill.models.cache_names import cache_argument
from radistill.models.loading import load
from radistill.models.sequences import Document
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

FIT = AlignSettings(steps=20, tokens_per_batch=200)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    AutoConfig.register("toy-hybrid", ToyConfig)
    AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)
    register_mixer(AVERAGE)
    register_target(ToyHybrid())
    yield
    for table, name in ((TARGETS, "toy-hybrid"), (MIXERS, "average"), (ARCHITECTURES, "toy-hybrid")):
        del table[name]
    CONFIG_MAPPING._extra_content.pop("toy-hybrid")
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(ToyConfig)


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(9)
    return [Document(str(n), tuple(torch.randint(4, 60, (24,), generator=generator).tolist()), 5) for n in range(24)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe and its whole run `out`: a search by replaceability, a fit, training, report."""
    folder = tmp_path_factory.mktemp("toy")
    tiny.save("llama", folder / "model")
    path = small_recipe(
        folder,
        {"source": "data"},
        diagnose={"budget": 2},
        convert={"target": {"kind": "toy-hybrid", "decay": 0.7}},
        align={"steps": 12},
        distill={"steps": 4, "tokens_per_batch": 200, "eval_steps": 2},
        evaluate={"max_new_tokens": 6},
    )
    run(load_recipe(path), folder / "out")
    return folder


def test_a_whole_run(finished: Path) -> None:
    out = finished / "out"
    plan = read_json(out / "plan.json")
    assert plan["by"] == "replaceability"
    fits = read_json(out / "align.json")["layers"]
    assert [fit["layer"] for fit in fits] == plan["replace"]
    assert all(fit["unexplained_after"] < fit["unexplained_before"] for fit in fits)
    # No attention has to stay, so one student had a block for each.
    assert len(list((out / "aligned").glob("layer-*.json"))) == 4
    student = load(out / "student")
    assert isinstance(student.network, ToyForCausalLM)
    assert list(student.anatomy.ssm_layers) == plan["replace"]
    assert student.anatomy.ssm_state_bytes() == 2 * 24 * 4
    assert student.network.config.average_decay == 0.7
    evaluation = read_json(out / "evaluation.json")
    assert 0 < evaluation["hybrid"]["kl"] < evaluation["draft"]["kl"]
    assert evaluation["hybrid"]["kv_bytes_per_token"] * 2 == evaluation["base"]["kv_bytes_per_token"]
    assert "replaced by a moving average" in (out / "report.html").read_text()


def test_export(finished: Path, tmp_path: Path) -> None:
    folder = export(finished / "out", "hf", tmp_path / "exported")
    card = (folder / "README.md").read_text()
    assert "were replaced by Moving Average blocks" in card
    assert "`ToyForCausalLM`" in card
    assert yaml.safe_load(card.split("---")[1])["tags"][2:4] == ["average", "toy-hybrid"]
    assert "llama.cpp" not in card
    ids = torch.arange(4, 20)[None]
    ours, theirs = load(finished / "out" / "student").network, AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    with pytest.raises(RadistillError, match=r"architecture toy-hybrid .*written for granitemoehybrid, qwen3_5_text"):
        export(finished / "out", "gguf", tmp_path / "x.gguf")


def test_the_cache_continues_what_the_whole_reads(finished: Path) -> None:
    network = load(finished / "out" / "student").network
    ids = torch.randint(4, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(input_ids=ids, use_cache=False).logits
        first = network(input_ids=ids[:, :7], use_cache=True)
        name = cache_argument(network)
        rest = network(input_ids=ids[:, 7:], use_cache=True, **{name: first[name]}).logits
    torch.testing.assert_close(rest, whole[:, 7:], rtol=1e-4, atol=1e-5)


def test_an_estimate(finished: Path) -> None:
    found = estimate(load_recipe(finished / "recipe.yaml"))
    assert found.models[-1].new_parameters == 2 * 3 * 24 * 32
    assert (found.work.align_blocks, found.work.align_passes) == (4, 1)


def test_every_attention_may_go_where_the_target_says_so() -> None:
    teacher = tiny.model("llama")
    assert convert(teacher, [0, 1, 2, 3], target="toy-hybrid").anatomy.attention_layers == ()
    assert set(fit_blocks(teacher, documents(), FIT, target="toy-hybrid").blocks) == {0, 1, 2, 3}


@pytest.mark.parametrize(("kept", "students"), [(0, [[1, 3, 5]]), (1, [[1, 3], [5]]), (2, [[1], [3], [5]])])
def test_a_target_that_keeps_attention_needs_more_students(
    monkeypatch: pytest.MonkeyPatch, kept: int, students: list[list[int]]
) -> None:
    monkeypatch.setattr(ToyHybrid, "keeps", kept)
    assert ToyHybrid().students([1, 3, 5]) == students


def test_a_block_is_not_restored_for_one_that_forgets_faster(tmp_path: Path) -> None:
    """Same weights, same shapes, same start: only the config says that these are two functions."""
    teacher = tiny.model("llama")
    fits = {}
    for decay in (0.5, 0.9):
        student = convert(teacher, [1], target=ToySettings(decay=decay))
        fits[decay] = align(student, teacher, documents(), FIT, replace=[1], folder=tmp_path).layers[0]
    assert fits[0.5].losses != fits[0.9].losses
    assert len(list(tmp_path.glob("layer-001-*.json"))) == 2
    again = convert(teacher, [1], target=ToySettings(decay=0.5))
    assert align(again, teacher, documents(), FIT, replace=[1], folder=tmp_path).layers[0] == fits[0.5]


WRONG = {
    "toy-hybird": "convert.target: 'toy-hybird' is unknown; did you mean 'toy-hybrid'? "
    "choose one of cut, granite-hybrid, massv, qwen3.5, toy-hybrid",
    "{kind: toy-hybrid, widht: 3}": "convert.target.widht: unknown field; did you mean 'width'? allowed: decay, kind, ",
    "{kind: toy-hybrid, width: wide}": "convert.target.width: must be a whole number, not 'wide'",
    "{kind: toy-hybrid, groups: 3}": "convert.target.groups: unknown field; allowed: decay, kind, width",
    "{groups: 0}": "convert.target.groups: must be at least 1 or 'heads', not 0",
}


@pytest.mark.parametrize("target", WRONG)
def test_a_recipe_names_what_is_wrong_with_a_target(finished: Path, target: str) -> None:
    with pytest.raises(RadistillError) as caught:
        load_recipe(finished / "recipe.yaml", [f"convert.target={target}"])
    assert WRONG[target] in str(caught.value)


def test_a_recipe_takes_the_kinds_and_starts_that_are_registered(finished: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml", ["convert.target=toy-hybrid", "convert.init=still"])
    assert recipe.convert.target == ToySettings()
    assert recipe.model_dump(mode="json")["convert"]["target"] == {"kind": "toy-hybrid", "width": 24, "decay": 0.8}
    assert load_recipe(finished / "recipe.yaml", ["convert.target={state: 16}"]).convert.target.kind == "granite-hybrid"
    with pytest.raises(RadistillError, match="must be one of fitted, random, still, transfer, zero, not 'magic'"):
        load_recipe(finished / "recipe.yaml", ["convert.init=magic"])


def test_what_the_target_or_its_blocks_cannot_do_is_named() -> None:
    with pytest.raises(RadistillError, match="tiny qwen2: toy-hybrid cannot hold this model: architecture qwen2"):
        convert(tiny.model("qwen2"), [1], target="toy-hybrid")
    with pytest.raises(RadistillError, match="init fitted does not fit these blocks: average_width is 65"):
        convert(tiny.model("llama"), [1], target=ToySettings(width=65))
    with pytest.raises(RadistillError, match="init: 'zero' is unknown; choose from fitted, still"):
        convert(tiny.model("llama"), [1], target="toy-hybrid", init="zero")
    with pytest.raises(RadistillError, match=r"target: 'toy' is unknown; choose from granite-hybrid, .*toy-hybrid"):
        convert(tiny.model("llama"), [1], target="toy")
