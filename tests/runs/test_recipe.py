"""Recipes: what is accepted, and what a user reads who got a field wrong."""

import copy
from pathlib import Path
from typing import Any

import pytest
import recipe_table
import yaml

from radistill.cli.options import recipe_of
from radistill.diagnosis.selectors import SELECTORS
from radistill.errors import RadistillError
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import Recipe, load_recipe

RECIPES = list(shipped_recipes().values())

SMALLEST: dict[str, Any] = {
    "model": "some/model",
    "data": {"kind": "jsonl", "path": "data.jsonl"},
    "diagnose": {"budget": 2},
}


def write(folder: Path, changes: dict[str, Any]) -> Path:
    """Write the smallest recipe; a key of `changes` such as `data.train` reaches into its sections."""
    recipe = copy.deepcopy(SMALLEST)
    for field, value in changes.items():
        *parents, last = field.split(".")
        node = recipe
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def refusal(path: Path, *overrides: str) -> str:
    """What a user reads, without the name of the file."""
    with pytest.raises(RadistillError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path)).removeprefix(": ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    load_recipe(path)


def test_the_recipes_for_users_are_shipped() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"quickstart", "llama-3.2-3b-rad", "llama-3.2-3b-rad-8b-teacher", "qwen2.5-coder-0.5b"}


def test_the_8b_teacher_variant_differs_in_the_teacher_only() -> None:
    folder = RECIPES[0].parent
    own, larger = (load_recipe(folder / f"llama-3.2-3b-rad{suffix}.yaml") for suffix in ("", "-8b-teacher"))
    assert larger.teacher == "meta-llama/Llama-3.1-8B-Instruct"
    assert larger.model_copy(update={"teacher": None}) == own


def test_the_paper_s_setting() -> None:
    recipe = load_recipe(RECIPES[0].parent / "llama-3.2-3b-rad.yaml")
    assert (recipe.model, recipe.teacher) == ("meta-llama/Llama-3.2-3B-Instruct", None)
    assert recipe.diagnose.budget == 14
    assert recipe.diagnose.selector.kind == "bayes"
    assert not recipe.diagnose.selector.warm_start
    assert recipe.diagnose.by == "redundancy"
    assert recipe.convert.init == "zero"
    assert (recipe.dtype, recipe.device) == ("bfloat16", "cuda")
    assert recipe.distill is not None
    assert recipe.distill.loss.kind == "forward-kl"


def test_layers_are_chosen_by_replaceability_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    assert load_recipe(path).diagnose.by == "replaceability"
    assert load_recipe(path, ["diagnose.by=redundancy", "align=null", "convert.init=zero"]).align is None
    for name in ("quickstart", "qwen2.5-coder-0.5b"):
        assert load_recipe(RECIPES[0].parent / f"{name}.yaml").diagnose.by == "replaceability"


def test_where_layers_go_altogether_nothing_is_fitted(tmp_path: Path) -> None:
    path = write(tmp_path, {"convert": {"target": "cut"}, "distill": {"other_learning_rate": 1e-4}})
    recipe = load_recipe(path)
    assert (recipe.diagnose.by, recipe.align) == ("redundancy", None)
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, {"diagnose.selector": "uniform", "arms": {"other": {"init": "zero", "distill": None}}})
    )
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_every_field_is_described() -> None:
    fields = list(recipe_table.fields())
    assert len(fields) > 80
    undescribed = [
        f"{path}.{name}" for path, section, name, info in fields if not recipe_table.description(section, name, info)
    ]
    assert undescribed == []


def test_the_documentation_has_every_field() -> None:
    page = recipe_table.PAGE.read_text(encoding="utf-8")
    between = page.partition(recipe_table.BEGIN)[2].partition(recipe_table.END)[0]
    assert between.strip() == recipe_table.tables().strip(), "run: python tests/runs/recipe_table.py"
    for path, _, name, _ in recipe_table.fields():
        assert f"| `{name}` |" in between, f"{path}.{name}"


TOP = (
    "align, arms, connect, convert, data, device, diagnose, distill, dtype, evaluate, finetune, model, seed, teacher, "
)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # Unknown fields, at each depth.
    "top": (
        {"modle": "x"},
        f"modle: unknown field; did you mean 'model'? allowed: {TOP}threads, trust_remote_code",
    ),
    "section": (
        {"diagnose.budgte": 2},
        "diagnose.budgte: unknown field; did you mean 'budget'? allowed: budget, by, context_length, draft_length, "
        "keep, memory_gib, minutes, objective, passes, penalty, selector, tokens_per_batch, tradeoff",
    ),
    "of a kind": (
        {"diagnose.selector": {"kind": "bayes", "trails": 1}},
        "diagnose.selector.trails: unknown field; did you mean 'trials'? "
        "allowed: kind, startup, storage, trials, warm_start, workers",
    ),
    "of another kind": (
        {"diagnose.selector": {"kind": "uniform", "trials": 1}},
        "diagnose.selector.trials: unknown field; allowed: kind",
    ),
    "below a kind": (
        {"data.responses": {"temprature": 1}},
        "data.responses.temprature: unknown field; did you mean 'temperature'? "
        "allowed: batch_size, max_new_tokens, server, source, temperature, top_p",
    ),
    "in an optional section": (
        {"arms": {"other": {"target": {"kind": "granite-hybrid", "gruops": 1}}}},
        "arms.other.target.gruops: unknown field; did you mean 'groups'? "
        "allowed: chunk_size, conv_kernel, expand, groups, kind, state",
    ),
    "in a loss": (
        {"distill": {"loss": {"kind": "forward-kl", "temprature": 2}}},
        "distill.loss.temprature: unknown field; did you mean 'temperature'? allowed: kind, temperature",
    ),
    "nothing is close": ({"evaluate": {"zzz": 1}}, "evaluate.zzz: unknown field; allowed: batch_size, contexts"),
    "misspelt and so missing": ({"diagnose": {"budgte": 2}}, "diagnose.budgte: unknown field; did you mean 'budget'?"),
    "number as a name": ({"1": 2}, "1: unknown field; allowed: "),
    # Kinds and names.
    "selector": (
        {"diagnose.selector": "bays"},
        f"diagnose.selector: 'bays' is unknown; did you mean 'bayes'? choose one of {', '.join(sorted(SELECTORS))}",
    ),
    "selector in full": (
        {"diagnose.selector": {"kind": "bays"}},
        f"diagnose.selector: 'bays' is unknown; did you mean 'bayes'? choose one of {', '.join(sorted(SELECTORS))}",
    ),
    "selector without a kind": (
        {"diagnose.selector": {"trials": 2}},
        f"diagnose.selector.kind: is required; choose one of {', '.join(sorted(SELECTORS))}",
    ),
    "source": (
        {"data.kind": "jsnol"},
        "data: 'jsnol' is unknown; did you mean 'jsonl'? choose one of datasets, jsonl, reasoning-gym",
    ),
    "no source": ({"data": {"path": "x"}}, "data.kind: is required; choose one of datasets, jsonl, reasoning-gym"),
    "target": (
        {"convert": {"target": "granit"}},
        "convert.target: 'granit' is unknown; did you mean 'granite-hybrid'? "
        "choose one of cut, granite-hybrid, massv, qwen3.5",
    ),
    "initialisation": (
        {"convert": {"init": "zeros"}},
        "convert.init: must be one of fitted, random, transfer, zero, not 'zeros'",
    ),
    "initialisation as a list": (
        {"convert": {"init": ["zero"]}},
        "convert.init: must be one of fitted, random, transfer, zero",
    ),
    "objective": (
        {"diagnose.objective": "speed"},
        "diagnose.objective: must be one of acceptance, acceptance-sampled, accepted-length, kl, recall, retrieval, "
        "throughput-measured, throughput-modelled, or weights such as {kl: 1, recall: 1}, not 'speed'",
    ),
    "weights": (
        {"diagnose.objective": {"kl": 1, "speed": 1}},
        "diagnose.objective: must have weights above 0 of acceptance, acceptance-sampled, accepted-length, kl, ",
    ),
    "the same lengths": (
        {"data.retrieval": {"contexts": [99, 99]}},
        "data.retrieval.contexts: must be different lengths",
    ),
    "retrieval": ({"data.retrieval": {"contexts": [9]}}, "data.retrieval.contexts: must be at least 64, not 9"),
    "promise": (
        {"diagnose": {"budget": "auto", "keep": {"kl": 0}}},
        "diagnose.keep.kl: must be above 0, not 0",
    ),
    "empty promise": (
        {"diagnose": {"budget": "auto", "keep": {}}},
        "diagnose.keep: promises nothing: give kl, recall or tasks",
    ),
    "auto without promise": ({"diagnose": {"budget": "auto"}}, "diagnose: budget is auto, which needs keep"),
    "promise of a number": ({"diagnose.keep": {"kl": 0.1}}, "diagnose: keep is for budget: auto"),
    "auto by another selector": (
        {"diagnose": {"budget": "auto", "keep": {"kl": 0.1}, "selector": "bayes"}},
        "diagnose: budget is auto, which is found by the selector curve, not bayes",
    ),
    "auto and penalty": (
        {"diagnose": {"budget": "auto", "keep": {"kl": 0.1}, "penalty": 0.1}},
        "diagnose: budget is auto, and penalty chooses the number of layers, too",
    ),
    "loss": (
        {"distill": {"loss": {"kind": "reverse_kl"}}},
        "distill.loss: 'reverse_kl' is unknown; did you mean 'reverse-kl'? "
        "choose one of forward-kl, jsd, lk-alpha, lk-lambda, reverse-kl, skewed-kl, total-variation",
    ),
    "loss without a kind": (
        {"distill": {"loss": {"temperature": 2}}},
        "distill.loss.kind: is required; "
        "choose one of forward-kl, jsd, lk-alpha, lk-lambda, reverse-kl, skewed-kl, total-variation",
    ),
    "field of another loss": (
        {"distill": {"loss": {"kind": "reverse-kl", "beta": 0.5}}},
        "distill.loss.beta: unknown field; allowed: kind, temperature",
    ),
    "hidden": ({"distill": {"hidden": {"kind": "l2"}}}, "distill.hidden: 'l2' is unknown; choose one of cosine, mse"),
    "in a hidden loss": (
        {"distill": {"hidden": {"kind": "mse", "weigth": 1}}},
        "distill.hidden.weigth: unknown field; did you mean 'weight'? allowed: kind, weight",
    ),
    "in finetune": (
        {"finetune": {"loss": "jsd"}},
        "finetune.loss: unknown field; allowed: compile, data, divergence, eval_steps, gradient_accumulation, ",
    ),
    "in the data of finetune": (
        {"finetune": {"data": {"kind": "jsonl", "path": "x.jsonl", "trian": 3}}},
        "finetune.data.trian: unknown field; did you mean 'train'? allowed: ",
    ),
    "in on_policy": (
        {"distill": {"on_policy": {"shares": 1}}},
        "distill.on_policy.shares: unknown field; did you mean 'share'? allowed: final_share, max_new_tokens, share, ",
    ),
    "cross-entropy alone": ({"distill": {"cross_entropy": 1}}, "distill.cross_entropy: must be below 1, not 1"),
    "dtype": ({"dtype": "float16"}, "dtype: must be 'float32' or 'bfloat16', not 'float16'"),
    "device": ({"device": "gpu"}, "device: must be 'auto', 'cpu' or 'cuda', not 'gpu'"),
    # Types.
    "word for a number": ({"diagnose.budget": "two"}, "diagnose.budget: must be a whole number or 'auto', not 'two'"),
    "fraction": ({"diagnose.budget": 2.5}, "diagnose.budget: must be a whole number or 'auto', not 2.5"),
    "null for a number": ({"diagnose.budget": None}, "diagnose.budget: must be a whole number or 'auto', not null"),
    "number for text": ({"model": 3}, "model: must be text, not 3"),
    "list for text": ({"model": ["a"]}, "model: must be text"),
    "word for a truth": (
        {"evaluate": {"exact_match": "maybe"}},
        "evaluate.exact_match: must be true or false, not 'maybe'",
    ),
    "word for a rate": ({"align": {"learning_rate": "fast"}}, "align.learning_rate: must be a number, not 'fast'"),
    "number for a section": ({"align": 3}, "align: must be a mapping of fields, not 3"),
    "text for a section": ({"data": "x.jsonl"}, "data: must be a mapping of fields, not 'x.jsonl'"),
    "null for a section": ({"diagnose": None}, "diagnose: must be a mapping of fields, not null"),
    "number or a word": (
        {"convert": {"target": {"groups": "haeds"}}},
        "convert.target.groups: must be a whole number or 'heads', not 'haeds'",
    ),
    # Ranges.
    "budget": ({"diagnose.budget": -1}, "diagnose.budget: must be at least 0 or 'auto', not -1"),
    "negative": ({"data.responses": {"temperature": -1}}, "data.responses.temperature: must be at least 0, not -1"),
    "zero rate": ({"align": {"learning_rate": 0}}, "align.learning_rate: must be above 0, not 0"),
    "not a number": ({"align": {"learning_rate": float("nan")}}, "align.learning_rate: must be a finite number"),
    "share": ({"align": {"held_out": 1}}, "align.held_out: must be below 1, not 1"),
    "probability": ({"data.responses": {"top_p": 1.5}}, "data.responses.top_p: must be at most 1, not 1.5"),
    "address": ({"data.responses": {"server": "host:80"}}, "data.responses.server.url: must be an address, such as "),
    "a name of the one": (
        {"evaluate": {"server": {"url": "vllm", "model": "m"}}},
        "evaluate.server: model is for a server that has several, and vllm has the one",
    ),
    "number for an address": ({"data.responses": {"server": 80}}, "data.responses.server: must be a mapping of fields"),
    "key in an address": (
        {"distill": {"teacher_store": {"server": "http://me:secret@host"}}},
        "distill.teacher_store.server.url: must be an address alone; a key belongs in the environment variable "
        "RADISTILL_SERVER_KEY",
    ),
    "groups": ({"convert": {"target": {"groups": 0}}}, "convert.target.groups: must be at least 1 or 'heads', not 0"),
    "seed": ({"seed": 2**40}, "seed: must be below 4294967296, not 1099511627776"),
    "empty": ({"model": ""}, "model: must not be empty"),
    "no tasks": ({"data": {"kind": "reasoning-gym", "tasks": []}}, "data.tasks: must have at least 1 entry"),
    "true for a number": ({"align": {"steps": True}}, "align.steps: must be a whole number, not true"),
    "true for a rate": ({"align": {"learning_rate": True}}, "align.learning_rate: must be a number, not true"),
    "a number in quotes": ({"align": {"steps": "20"}}, "align.steps: must be a whole number, not '20'"),
    "in an arm": ({"arms": {"a": {"align": {"steps": True}}}}, "arms.a.align.steps: must be a whole number, not true"),
    "more than a line holds": (
        {"diagnose.budget": "x" * 10_000},
        "diagnose.budget: must be a whole number or 'auto', not 'xxx",
    ),
    # Required fields, and several problems at once.
    "required": ({"diagnose": {}}, "diagnose.budget: is required"),
    "required by the kind": ({"data": {"kind": "jsonl"}}, "data.path: is required"),
    "two problems": ({"seed": -1, "threads": 0}, "seed: must be at least 0, not -1 (and 1 more)"),
    "field of another source": (
        {"data": {"kind": "datasets", "path": "x"}},
        "data.path: unknown field; allowed: calibration, calibration_from, columns, ",
    ),
    "column": (
        {"data": {"kind": "datasets", "id": "x", "columns": {"foo": "b"}}},
        "data.columns.foo: must be 'messages', 'tools', 'prompt', 'response', 'text' or 'answer', not 'foo'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    assert refusal(write(tmp_path, changes)).startswith(message)


NOT_A_RECIPE = {
    "empty": ("", ": is empty; a recipe is a mapping of fields such as `model: smollm2-135m`"),
    "comments": ("# nothing\n", ": is empty; a recipe is a mapping"),
    "list": ("- a\n- b\n", ": is not a recipe; a recipe is a mapping of fields"),
    "text": ("just text", ": is not a recipe; a recipe is a mapping of fields"),
    "broken": ("model: a\ndata: [", ", line 2: not valid YAML ("),
    "tab": ("model: m\n\tdata: 3\n", ", line 2: not valid YAML (found character '\\t'"),
    "given twice": ("model: a\nseed: 1\nmodel: b\n", ", line 3: not valid YAML (model is given twice)"),
    "given twice below": ("diagnose:\n  budget: 1\n  budget: 2\n", ", line 3: not valid YAML (budget is given twice)"),
    "a list as a key": ("? [a]\n: 3\n", ", line 1: not valid YAML (found unhashable key)"),
    "code": ("model: !!python/object/apply:os.getcwd []\n", ", line 1: not valid YAML (could not determine"),
    "an alias": ("model: &m a\nteacher: *m\n", ", line 2: not valid YAML (aliases such as *name are not read"),
    "too deep": ("data: " + "[" * 3000, ": not valid YAML (nested deeper than 100 levels)"),
    "too long a number": ("seed: " + "9" * 5000, ", line 1: not valid YAML (a number of 5000 digits)"),
    "too long": ("# comment\n" * 20_000, ": has 200,000 bytes, and at most 128 KiB are read"),
    "control characters": ("\x00", ": not valid YAML (unacceptable character"),
}


@pytest.mark.parametrize("case", NOT_A_RECIPE)
def test_what_is_not_a_recipe(case: str, tmp_path: Path) -> None:
    text, message = NOT_A_RECIPE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RadistillError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a folder, not a file"
    assert refusal(tmp_path / "none.yaml") == "no such file"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal(tmp_path / "binary.yaml").startswith("not UTF-8 text")
    assert refusal(tmp_path / "binary.yaml" / "below.yaml") == "no such file"


def test_a_date_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: 2001-99-99\ndata: {kind: jsonl, path: a}\ndiagnose: {budget: 1}\n")
    assert load_recipe(path).model == "2001-99-99"


def test_the_same_key_in_different_sections_is_no_repetition(tmp_path: Path) -> None:
    load_recipe(write(tmp_path, {"align": {"steps": 3}, "distill": {"steps": 4}}))


SETS: dict[str, tuple[str, str, Any]] = {
    "number": ("distill.steps=20", "distill.steps", 20),
    "rate": ("distill.new_block_learning_rate=1e-3", "distill.new_block_learning_rate", 1e-3),
    "text": ("model=other/model", "model", "other/model"),
    "text with an equals sign": ("data.system=a=b", "data.system", "a=b"),
    "truth": ("evaluate.exact_match=false", "evaluate.exact_match", False),
    "through the short form": ("diagnose.selector.trials=5", "diagnose.selector.trials", 5),
    "in a section that is left out": ("convert.target.groups=heads", "convert.target.groups", "heads"),
    "in a section that is null": ("finetune.steps=3", "finetune.steps", 3),
    "null": ("distill=null", "distill", None),
    "a whole section": ("diagnose.selector={kind: bayes, trials: 7}", "diagnose.selector.trials", 7),
    "the short form": ("diagnose.selector=uniform", "diagnose.selector.kind", "uniform"),
}


@pytest.mark.parametrize("case", SETS)
def test_set_overrides_a_field(case: str, tmp_path: Path) -> None:
    override, path, value = SETS[case]
    node: Any = load_recipe(write(tmp_path, {"diagnose.selector": "bayes", "finetune": None}), [override])
    for field in path.split("."):
        node = getattr(node, field)
    assert node == value


def test_set_null_takes_a_section_out(tmp_path: Path) -> None:
    path = write(tmp_path, {"finetune": {"steps": 3}})
    assert load_recipe(path).finetune is not None
    assert load_recipe(path, ["finetune=null"]).finetune is None


def test_set_is_applied_in_order_and_leaves_other_fields(tmp_path: Path) -> None:
    path = write(tmp_path, {"distill": {"steps": 3, "eval_steps": 7}})
    recipe = load_recipe(path, ["distill.steps=4", "distill.steps=5"])
    assert recipe.distill is not None
    assert (recipe.distill.steps, recipe.distill.eval_steps) == (5, 7)


WRONG_SETS = {
    "distill.stepps=3": "distill.stepps: unknown field; did you mean 'steps'? allowed: ",
    "dstill.steps=3": "dstill: unknown field; did you mean 'distill'? allowed: ",
    "diagnose.selector.trails=5": "diagnose.selector.trails: unknown field; did you mean 'trials'? allowed: ",
    "distill.steps 20": "--set distill.steps 20: write it as field=value, for example distill.steps=20",
    "=3": "--set =3: write it as field=value, for example distill.steps=20",
    "distill..steps=1": "--set distill..steps=1: write it as field=value, for example distill.steps=20",
    "distill.steps=": "distill.steps: must be a whole number, not null",
    "distill.steps=[": "--set distill.steps=[, line 1: not valid YAML (",
    "distill.steps=many": "distill.steps: must be a whole number, not 'many'",
    "model.size=1": "--set model.size=1: model is 'some/model', which has no fields",
    "seed.x=1": "--set seed.x=1: seed is 5, which has no fields",
}


@pytest.mark.parametrize("override", WRONG_SETS)
def test_a_wrong_set_is_explained(override: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"diagnose.selector": "bayes", "seed": 5})
    assert refusal(path, override).startswith(WRONG_SETS[override])


def test_pydantic_knows_no_other_depth() -> None:
    """The tables above try one field of each section; a new section belongs there too."""
    assert {path for path, *_ in recipe_table.fields(Recipe)} == {
        "",
        "data",
        "data.responses",
        "data.responses.server",
        "data.retrieval",
        "diagnose",
        "diagnose.keep",
        "diagnose.selector",
        "convert",
        "convert.target",
        "align",
        "align.data",
        "align.data.responses",
        "align.data.responses.server",
        "align.data.retrieval",
        "connect",
        "connect.data",
        "connect.data.responses",
        "connect.data.responses.server",
        "connect.data.retrieval",
        "distill",
        "distill.data",
        "distill.data.responses",
        "distill.data.responses.server",
        "distill.data.retrieval",
        "distill.loss",
        "distill.hidden",
        "distill.on_policy",
        "distill.rate_search",
        "distill.select",
        "distill.teacher_store",
        "distill.teacher_store.server",
        "finetune",
        "finetune.data",
        "finetune.data.responses",
        "finetune.data.responses.server",
        "finetune.data.retrieval",
        "arms.NAME",
        "arms.NAME.selector",
        "arms.NAME.target",
        "evaluate",
        "evaluate.server",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"diagnose.selector": "kl-guided", "diagnose.by": "redundancy"},
            "diagnose.by is redundancy, but diagnose.selector is kl-guided, which compares fitted blocks; change that, "
            "or set diagnose.by to replaceability",
        ),
        (
            {"arms": {"other": {"selector": "kl-guided", "by": "redundancy"}}},
            "arms.other.by is redundancy, but arms.other.selector is kl-guided, which compares fitted blocks; change ",
        ),
        (
            {"diagnose.budget": 0, "teacher": "larger"},
            "diagnose.budget is 0, so the student is the model as it is, which needs convert.target: cut ",
        ),
        (
            {"diagnose.budget": 0, "convert": {"target": "cut"}, "distill": {"other_learning_rate": 1e-4}},
            "diagnose.budget is 0, so the student is the model as it is, which needs convert.target: cut ",
        ),
        (
            {"convert": {"target": "cut"}, "diagnose.by": "replaceability"},
            "convert.target is cut, which has no new blocks to judge layers by; set diagnose.by: redundancy",
        ),
        (
            {"convert": {"target": "cut"}, "align": {}},
            "convert.target is cut, which has no new blocks to fit; set align to null",
        ),
        (
            {"convert": {"target": "cut"}},
            "convert.target is cut, which has no new blocks, so with distill.other_learning_rate 0 there is nothing to "
            "train; set it to 3e-4 or so",
        ),
        (
            {"convert": {"target": "cut"}, "distill": {"other_learning_rate": 1e-4}, "finetune": {}},
            "convert.target is cut, which has no new blocks, so with finetune.other_learning_rate 0 there is nothing ",
        ),
        (
            {"convert": {"target": "cut"}, "distill": {"other_learning_rate": 1e-4, "rate_search": {"rates": [1e-4]}}},
            "convert.target is cut, which has no new blocks whose rate could be searched; set distill.rate_search to ",
        ),
        (
            {"arms": {"short": {"target": "cut"}}},
            "arms.short.target is cut, which has no new blocks to judge layers by; set arms.short.by: redundancy",
        ),
        (
            {"align": None},
            "diagnose.by is replaceability, which needs fitted blocks, but align is null; give it a section, or set "
            "diagnose.by: redundancy",
        ),
        (
            {"diagnose.objective": "throughput-modelled"},
            "diagnose.by is replaceability, but diagnose.objective is throughput-modelled, which is about drafts that "
            "skip attention, unlike acceptance, acceptance-sampled, accepted-length, kl, retrieval, recall; change "
            "that, or set diagnose.by to redundancy",
        ),
        (
            {"diagnose.objective": {"kl": 1, "recall": 1}},
            "diagnose.objective is {'kl': 1.0, 'recall': 1.0}, which needs texts; give data.retrieval a section",
        ),
        (
            {"diagnose": {"budget": "auto", "keep": {"recall": 0.5}}},
            "diagnose.keep.recall needs texts; give data.retrieval a section",
        ),
        (
            {"diagnose": {"budget": "auto", "keep": {"kl": 0.5}}, "data.heldout": 1},
            "diagnose.keep.kl is about an interval, which one document does not have; raise data.heldout",
        ),
        (
            {"diagnose": {"budget": "auto", "keep": {"recall": 0.97}}, "data.retrieval": {}},
            "diagnose.keep.recall is 0.97, which 48 texts cannot show, even if all are found; raise "
            "data.retrieval.heldout",
        ),
        (
            {"data.loss_on": "all", "distill": {"on_policy": {}}},
            "data.loss_on is all, which leaves no prompt for distill.on_policy to answer",
        ),
        (
            {"distill": {"on_policy": {"share": 0}}},
            "distill.on_policy: share is 0 throughout; raise share or final_share, or set the section to null",
        ),
        (
            {"distill": {"on_policy": {"share": 1}, "cross_entropy": 0.1}},
            "distill.cross_entropy counts on documents only",
        ),
        (
            {"convert": {"init": "fitted"}, "align": None, "diagnose.by": "redundancy"},
            "convert.init is fitted, which needs a fit",
        ),
        (
            {"arms": {"other": {"by": "redundancy", "align": None}}},
            "arms.other.init is fitted, which needs a fit, but arms.other.align is null; give it a section, or set",
        ),
    ],
    ids=[
        "kl-guided",
        "arm",
        "nothing-replaced",
        "nothing-to-learn",
        "cut-by",
        "cut-align",
        "cut-rate",
        "cut-finetune",
        "cut-search",
        "cut-arm",
        "align",
        "objective",
        "retrieval",
        "promise",
        "one-document",
        "too-few-texts",
        "loss-on",
        "no-share",
        "no-documents",
        "fitted",
        "fitted-arm",
    ],
)
def test_fields_that_contradict_one_another_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert refusal(write(tmp_path, changes)).startswith(message)


@pytest.mark.parametrize("model", ["1e5", "12E34", "2001-99-99", "yes", "~", "0x1F"])
def test_a_saved_recipe_is_read_as_it_was(tmp_path: Path, model: str) -> None:
    recipe = Recipe.model_validate({"model": model, "data": {"kind": "jsonl", "path": "a"}, "diagnose": {"budget": 1}})
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("value", ["!!binary aGVsbG8=", "!!set {a}", "!!timestamp 2001-01-01", ".inf"])
def test_values_that_no_recipe_can_keep_are_one_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    text = "model: m\ndata: {kind: jsonl, path: a}\ndiagnose: {budget: 1}\n"
    path.write_text(f"{text}distill:\n  save_seconds: {value}\n")
    with pytest.raises(RadistillError, match=r"recipe\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_found_by_its_name(name: str, tmp_path: Path) -> None:
    assert recipe_of(Path(name), tmp_path) == shipped_recipes()[name]
