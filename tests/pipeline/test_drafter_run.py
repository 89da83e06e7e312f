"""A run whose result is a drafter: the model cut to fewer layers, trained, measured, and used."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from radistill.cli import main
from radistill.data.records import DataSplits
from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.export import export
from radistill.files import read_json, write_json
from radistill.models.loading import load
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.runs.recipe import load_recipe
from radistill.speculation.decode import speculative_generate
from radistill.speculation.masks import ComponentMask, masked
from small_recipe import small_recipe

pytestmark = pytest.mark.slow

DISTILL = {
    "steps": 4,
    "tokens_per_batch": 200,
    "eval_steps": 2,
    "other_learning_rate": 3e-3,
    "report_to": "none",
    "loss": {"kind": "lk-lambda"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe, and the run `out` that `radistill drafter train` made of it."""
    folder = tmp_path_factory.mktemp("drafter")
    tiny.save("llama-tied", folder / "model", layers=4)
    recipe = small_recipe(
        folder,
        {"source": "teacher", "max_new_tokens": 8},
        diagnose={"budget": 2, "selector": {"kind": "greedy", "swaps": 0}},
        convert={"target": "cut"},
        distill=DISTILL,
        arms={"stored": {"selector": "uniform", "distill": {"teacher_store": {"top_k": 8}}}},
        evaluate={"exact_match": False},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["radistill", "drafter", "train", str(recipe), "--out", str(folder / "out")])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 0
    return folder


def naive_acceptance(out: Path, target: Path, student: Path) -> float:
    """The mean of the sum of min(p, q) over held-out response tokens, a document at a time in float64, over the entries
    that both vocabularies have."""
    models, found = (load(str(target)), load(student)), list[float]()
    size = min(model.anatomy.vocab_size for model in models)
    for document in DataSplits.load(out / "data").documents("heldout"):
        ids, places = torch.tensor([document.tokens]), slice(document.response_start - 1, -1)
        with torch.no_grad():
            logits = [model.network(input_ids=ids).logits[0, places, :size].double() for model in models]
        p, q = (one.softmax(1).tolist() for one in logits)
        found += [sum(map(min, *pair)) for pair in zip(p, q, strict=True)]
    return sum(found) / len(found)


def check_acceptance(out: Path, target: Path, evaluation: dict[str, Any], training: dict[str, Any]) -> None:
    """The figures before and after training are the naive ones, and training has raised them."""
    for name, student in (("draft", out / "start"), ("hybrid", out / "student")):
        expected = naive_acceptance(out, target, student)
        assert evaluation[name]["sampled_acceptance"] == pytest.approx(expected, rel=1e-5)
    first, *_, last = training["evaluations"]
    assert first["sampled_acceptance"] == pytest.approx(evaluation["draft"]["sampled_acceptance"], rel=1e-6)
    assert last["sampled_acceptance"] > first["sampled_acceptance"]


def test_the_run_says_what_is_accepted_before_and_after(folder: Path) -> None:
    out = folder / "out"
    evaluation, training = read_json(out / "evaluation.json"), read_json(out / "distill.json")
    assert evaluation["base"]["sampled_acceptance"] == pytest.approx(1, abs=1e-6)
    check_acceptance(out, folder / "model", evaluation, training)
    # Over the stored tokens and the rest as one, more seems to be accepted than is.
    stored = read_json(out / "arms" / "stored" / "distill.json")["evaluations"][-1]
    assert stored["sampled_acceptance"] > evaluation["stored"]["sampled_acceptance"]
    page = (out / "report.html").read_text()
    assert "2 of 4 layers cut" in page
    now, before = (evaluation[name]["sampled_acceptance"] for name in ("hybrid", "draft"))
    assert f"and {100 * now:.1f} % of its sampled ones" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert f"and {100 * before:.1f} %." in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "Sampled acceptance" in page


def test_the_drafter_is_the_model_without_the_layers_that_the_search_judged(folder: Path) -> None:
    out, base = folder / "out", load(str(folder / "model"))
    plan, student, start = Plan.load(out / "plan.json"), load(out / "student"), load(out / "start")
    assert (plan.by, plan.components, len(plan.replace)) == ("redundancy", ["attention", "mlp"], 2)
    assert type(student.network) is type(base.network)
    assert student.anatomy.num_layers == 2
    ids = torch.randint(4, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    with masked(base, ComponentMask.of(plan.replace, plan.components)), torch.no_grad():
        expected = base.network(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        torch.testing.assert_close(start.network(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
    documents = DataSplits.load(out / "data").documents("heldout")
    prompts = [list(document.tokens[: document.response_start]) for document in documents]
    assert len(speculative_generate(base, prompts, student, draft_length=2, max_new_tokens=8).responses) == len(prompts)


def test_it_is_exported_as_a_stock_folder(folder: Path, tmp_path: Path) -> None:
    made = export(folder / "out", "hf", tmp_path / "drafter")
    assert load(made).fingerprint == load(folder / "out" / "student").fingerprint
    card = (made / "README.md").read_text()
    assert "it has 2 of its 4 layers" in card
    assert "state-space" not in card
    plan = read_json(folder / "out" / "plan.json")
    write_json(folder / "out" / "plan.json", plan | {"replace": [0]})
    try:
        with pytest.raises(RadistillError, match="has 2 layers, but the run's plan leaves 3"):
            export(folder / "out", "hf", tmp_path / "other")
    finally:
        write_json(folder / "out" / "plan.json", plan)


def test_a_small_model_is_trained_to_draft_for_a_larger_one(tmp_path: Path) -> None:
    """It stays as it is but for its weights; its vocabulary is padded, and figures are about the larger one."""
    tiny.save("qwen2", tmp_path / "model", layers=2, vocab_size=tiny.VOCAB_SIZE + 12)
    tiny.save("qwen2", tmp_path / "larger", layers=3, seed=1, hidden_size=64)
    recipe = small_recipe(
        tmp_path,
        {"source": "teacher", "max_new_tokens": 8},
        teacher=str(tmp_path / "larger"),
        diagnose={"budget": 0},
        convert={"target": "cut"},
        distill={**DISTILL, "on_policy": {"share": 0.5, "max_new_tokens": 8}},
        evaluate={"exact_match": False},
    )
    settings, out = load_recipe(recipe), tmp_path / "out"
    hybrid = next(model for model in estimate(settings).models if model.role == "hybrid")
    assert hybrid.trained_parameters == hybrid.total
    run(settings, out)
    evaluation, training = read_json(out / "evaluation.json"), read_json(out / "distill.json")
    assert Plan.load(out / "plan.json").replace == []
    assert load(out / "start").fingerprint != load(out / "student").fingerprint
    assert evaluation["base"]["sampled_acceptance"] == pytest.approx(1, abs=1e-6)
    larger = load(str(tmp_path / "larger"))
    assert evaluation["base"]["kv_bytes_per_token"] == larger.anatomy.kv_bytes_per_token()
    check_acceptance(out, tmp_path / "larger", evaluation, training)
    page = (out / "report.html").read_text()
    assert "0 of 2 layers cut" in page
    assert "the drafter is the model as it is" in page
    card = (export(out, "hf", tmp_path / "exported") / "README.md").read_text()
    for text in (page, card):  # of a draft that skips nothing, which the target never saw
        assert "Tokens of the draft accepted" not in text
        assert "tokens of the skip draft" not in text


def test_what_cannot_be_is_said_before_the_teacher_writes(tmp_path: Path) -> None:
    """By the dry run and by the run: a drafter larger than its target, a reference with another tokenizer, no layer."""
    tiny.save("llama", tmp_path / "model", layers=4)
    tiny.save("llama", tmp_path / "smaller", layers=2)
    stranger = tiny.model("llama", layers=2)
    stranger.tokenizer.add_tokens(["<new>"])
    stranger.save(tmp_path / "stranger")
    sections = {"convert": {"target": "cut"}, "distill": DISTILL, "evaluate": {"exact_match": False}}
    swapped = {"teacher": str(tmp_path / "smaller"), "diagnose": {"budget": 0}}
    select = {"distill": {**DISTILL, "select": {"reference": str(tmp_path / "stranger")}}, "diagnose": {"budget": 2}}
    nothing_left = {"diagnose": {"budget": 4}}
    for given, message in (
        (swapped, "are the two swapped"),
        (select, "distill.select.reference: .*stranger has another tokenizer than"),
        (nothing_left, "this model has 4 layers: it must be from 0 to 3, because a drafter keeps at least 1"),
    ):
        recipe = load_recipe(small_recipe(tmp_path, {"source": "teacher", "max_new_tokens": 8}, **(sections | given)))
        with pytest.raises(RadistillError, match=message):
            estimate(recipe)
        with pytest.raises(RadistillError, match=message):
            run(recipe, tmp_path / "out")
        assert not list((tmp_path / "out").glob("data/*.jsonl"))


def test_a_reference_that_is_not_there_is_missed_before_any_work(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model", layers=4)
    arms = {"chosen": {"distill": {"select": {"reference": str(tmp_path / "none")}}}}
    sections = {"convert": {"target": "cut"}, "distill": DISTILL, "evaluate": {"exact_match": False}, "arms": arms}
    sections["diagnose"] = {"budget": 2}
    recipe = small_recipe(tmp_path, {"source": "teacher", "max_new_tokens": 8}, **sections)
    with pytest.raises(RadistillError, match=r"arms.chosen.distill.select.reference: .*none"):
        run(load_recipe(recipe), tmp_path / "out")
    assert not list((tmp_path / "out").glob("data/*.jsonl"))
    inside = load_recipe(recipe, [f"arms.chosen.distill.select.reference={tmp_path / 'out' / 'student'}"])
    run(inside, tmp_path / "out", stages=("data",))  # where the main one leaves it before the arm reads it


def test_a_teacher_with_a_larger_embedding_writes_no_padding(tmp_path: Path) -> None:
    """Its random logits of padding rows are as large as those of tokens, so without a rule it writes some."""
    tiny.save("qwen2", tmp_path / "model", layers=2)
    tiny.save("qwen2", tmp_path / "larger", layers=3, vocab_size=tiny.VOCAB_SIZE + 200)
    recipe = small_recipe(
        tmp_path,
        {"source": "teacher", "max_new_tokens": 8},
        teacher=str(tmp_path / "larger"),
        diagnose={"budget": 0},
        convert={"target": "cut"},
        distill=DISTILL,
        evaluate={"exact_match": False},
    )
    run(load_recipe(recipe), tmp_path / "out", stages=("data",))
    documents = DataSplits.load(tmp_path / "out" / "data").documents("train")
    assert max(max(document.tokens) for document in documents) < tiny.VOCAB_SIZE


def test_a_drafter_of_another_run_tells_the_tokens_to_train_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    recipe = load_recipe(folder / "recipe.yaml", ["arms={}"])
    run(recipe, tmp_path / "out")
    alone = read_json(tmp_path / "out" / "distill.json")
    chosen = load_recipe(
        folder / "recipe.yaml",
        ["arms={}", f"distill.select={{share: 0.5, reference: {folder / 'out' / 'student'}}}"],
    )
    assert estimate(chosen).memory["distill"]["reference weights"] > 0
    run(chosen, tmp_path / "out")
    found = read_json(tmp_path / "out" / "distill.json")
    assert found["evaluations"][0] == alone["evaluations"][0]  # the same start
    assert found["curve"][0]["loss"] > alone["curve"][0]["loss"]  # tokens at which it is far behind
