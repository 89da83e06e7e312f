"""Which steps of a finished run are done again when a field of its recipe is changed: a row for every field."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import tiny
from radistill.data.records import RETRIEVAL, SPLITS
from radistill.diagnosis.plan import Plan
from radistill.diagnosis.selectors import Curve
from radistill.files import hash_file, write_json
from radistill.pipeline import inputs
from radistill.pipeline.context import Context
from radistill.runs.recipe import load_recipe
from runs.recipe_table import fields
from small_recipe import small_recipe
from small_run import write_plan

# Fields by the class that declares them: another value than the default, or than that of `BASE`.
VALUES: dict[str, Any] = {
    "Recipe.model": "{folder}/other",
    "Recipe.teacher": "{folder}/other",
    "Recipe.seed": 1,
    "Recipe.threads": 2,
    "Recipe.dtype": "bfloat16",
    "Recipe.device": "cpu",
    "Recipe.trust_remote_code": True,
    "Recipe.data": {"kind": "jsonl", "path": "other.jsonl"},
    "Recipe.diagnose": {"budget": 1, "by": "redundancy"},
    "Recipe.convert": {"init": "zero"},
    "Recipe.align": None,
    "Recipe.connect": {"steps": 3},
    "Recipe.distill": None,
    "Recipe.finetune": None,
    "Recipe.arms": {},
    "Recipe.evaluate": {"samples": 1},
    "_Data.train": 7,
    "_Data.calibration": 2,
    "_Data.heldout": 2,
    "_Data.calibration_from": "own",
    "_Data.responses": {"max_new_tokens": 3},
    "_Data.loss_on": "all",
    "_Data.max_length": 100,
    "_Data.system": "Be brief.",
    "_Data.retrieval": {},
    "RetrievalSettings.contexts": [128],
    "RetrievalSettings.train": 1,
    "RetrievalSettings.calibration": 1,
    "RetrievalSettings.heldout": 1,
    "JsonlData.path": "other.jsonl",
    "JsonlData.heldout_path": "other.jsonl",
    "HubData.id": "org/other",
    "HubData.config": "main",
    "HubData.split": "test",
    "HubData.heldout_split": "test",
    "HubData.columns": {"prompt": "question"},
    "ReasoningGymData.tasks": ["codeio"],
    "ResponseSettings.source": "teacher",
    "ResponseSettings.max_new_tokens": 3,
    "ResponseSettings.temperature": 0.5,
    "ResponseSettings.top_p": 0.5,
    "ResponseSettings.batch_size": 2,
    "ResponseSettings.server": "http://other",
    "ServerSettings.url": "http://other",
    "ServerSettings.model": "other",
    "ServerSettings.requests": 9,
    "ServerSettings.retries": 9,
    "DiagnoseSettings.budget": 1,
    "DiagnoseSettings.penalty": 0.5,
    "DiagnoseSettings.by": "replaceability",
    "DiagnoseSettings.selector": "uniform",
    "DiagnoseSettings.objective": "acceptance",
    "DiagnoseSettings.passes": 9,
    "DiagnoseSettings.minutes": 9,
    "DiagnoseSettings.tradeoff": True,
    "DiagnoseSettings.keep": {"kl": 0.5},
    "Keep.kl": 0.5,
    "Keep.recall": 0.5,
    "Keep.tasks": {"recall": -0.5},
    "DiagnoseSettings.context_length": 9,
    "DiagnoseSettings.draft_length": 3,
    "DiagnoseSettings.tokens_per_batch": 99,
    "DiagnoseSettings.memory_gib": 1.0,
    "Bayes.trials": 5,
    "Bayes.startup": 5,
    "Bayes.warm_start": False,
    "Bayes.workers": 2,
    "Bayes.storage": "sqlite:////tmp/study.db",
    "Curve.width": 2,
    "Curve.swap_width": 1,
    "Gates.steps": 5,
    "Gates.learning_rate": 0.25,
    "Gates.ramp": 0.5,
    "Gates.judge_every": 3,
    "Greedy.width": 2,
    "Greedy.swaps": 2,
    "Greedy.swap_width": 2,
    "ConvertSettings.target": {"kind": "granite-hybrid", "state": 16},
    "ConvertSettings.init": "zero",
    "GraniteHybridSettings.groups": "heads",
    "GraniteHybridSettings.state": 16,
    "GraniteHybridSettings.expand": 2,
    "GraniteHybridSettings.conv_kernel": 3,
    "GraniteHybridSettings.chunk_size": 32,
    "Qwen35Settings.key_heads": "heads",
    "Qwen35Settings.value_heads": 8,
    "Qwen35Settings.key_dim": 16,
    "Qwen35Settings.value_dim": 16,
    "Qwen35Settings.conv_kernel": 3,
    "AlignSettings.steps": 5,
    "AlignSettings.learning_rate": 0.25,
    "AlignSettings.other_learning_rate": 0.25,
    "AlignSettings.tokens_per_batch": 99,
    "AlignSettings.max_grad_norm": 2.0,
    "AlignSettings.solve_output": False,
    "AlignSettings.held_out": 0.25,
    "AlignSettings.memory_gib": 1.0,
    "AlignStage.data": {"kind": "jsonl", "path": "other.jsonl"},
    "DistillStage.data": {"kind": "jsonl", "path": "other.jsonl"},
    "ConnectStage.data": {"kind": "jsonl", "path": "other.jsonl"},
    "FinetuneStage.data": {"kind": "jsonl", "path": "other.jsonl"},
    "TrainingSettings.steps": 5,
    "TrainingSettings.tokens_per_batch": 99,
    "TrainingSettings.gradient_accumulation": 2,
    "TrainingSettings.new_block_learning_rate": 0.25,
    "DistillSettings.other_learning_rate": 0.25,
    "FinetuneSettings.other_learning_rate": 0.25,
    "TrainingSettings.warmup_ratio": 0.5,
    "TrainingSettings.scheduler": "linear",
    "TrainingSettings.weight_decay": 0.25,
    "TrainingSettings.max_grad_norm": 2.0,
    "TrainingSettings.precision": "weights",
    "TrainingSettings.gradient_checkpointing": True,
    "TrainingSettings.compile": True,
    "TrainingSettings.eval_steps": 3,
    "TrainingSettings.keep": {"connect": "best", "distill": "last", "finetune": "best"},
    "TrainingSettings.patience": 3,
    "TrainingSettings.divergence": 9.0,
    "TrainingSettings.save_seconds": 9.0,
    "TrainingSettings.report_to": "none",
    "TrainingSettings.teacher_device": "cpu",
    "DistillSettings.loss": {"kind": "reverse-kl"},
    "DistillSettings.cross_entropy": 0.25,
    "DistillSettings.hidden": {"kind": "mse"},
    "DistillSettings.on_policy": {},
    "DistillSettings.select": {"reference": "smollm2-135m"},
    "DistillSettings.teacher_store": {},
    "DistillSettings.rate_search": {"rates": [0.25]},
    "DistributionLoss.temperature": 2.0,
    "GeneralisedJSD.beta": 0.25,
    "SkewedKL.alpha": 0.25,
    "LKLambda.eta": 0.25,
    "HiddenLoss.weight": 0.25,
    "OnPolicySettings.share": 0.25,
    "OnPolicySettings.final_share": 0.25,
    "OnPolicySettings.max_new_tokens": 3,
    "OnPolicySettings.temperature": 0.5,
    "TokenSelection.share": 0.25,
    "TokenSelection.reference": "{folder}/other",
    "TeacherStoreSettings.top_k": 3,
    "TeacherStoreSettings.tokens_per_batch": 99,
    "TeacherStoreSettings.server": "http://other",
    "TeacherStoreSettings.folder": "/elsewhere",
    "RateSearch.rates": [0.25, 0.5],
    "RateSearch.share": 0.5,
    "RateSearch.further": 1,
    "ArmSettings.selector": "uniform",
    "ArmSettings.by": "replaceability",
    "ArmSettings.budget": 1,
    "ArmSettings.target": {"kind": "granite-hybrid", "state": 16},
    "ArmSettings.init": "zero",
    "ArmSettings.teacher": "{folder}/other",
    "ArmSettings.align": {"steps": 5},
    "ArmSettings.distill": {"steps": 5},
    "ArmSettings.finetune": {"steps": 5},
    "ArmSettings.rate": 0.25,
    "EvaluateSettings.exact_match": False,
    "EvaluateSettings.max_new_tokens": 3,
    "EvaluateSettings.batch_size": 3,
    "EvaluateSettings.tokens_per_batch": 99,
    "EvaluateSettings.tasks": ["recall"],
    "EvaluateSettings.limit": 3,
    "EvaluateSettings.contexts": [128],
    "EvaluateSettings.samples": 1,
    "EvaluateSettings.server": "vllm",
}

# What a section of a kind cannot be without.
REQUIRED = {
    "JsonlData": {"path": "data.jsonl"},
    "HubData": {"id": "org/name"},
    "RateSearch": {"rates": [0.125]},
    "TokenSelection": {"reference": "smollm2-135m"},
    "ServerSettings": {"url": "http://one"},
}
SERVERS = [
    "evaluate",
    "distill.teacher_store",
    *(f"{stage}data.responses" for stage in ("", "align.", "connect.", "distill.", "finetune.")),
]

TRAINED = {"distill", "finetune", "evaluate"}
# By field where fields of a section differ, else by section, else by the section around it: what is done again.
STEPS: dict[str, set[str]] = {
    "model": {"data", "diagnose", "convert", *TRAINED},
    "teacher": {"data", *TRAINED},
    "seed": {"data", "diagnose", "convert", *TRAINED},
    "dtype": {"data", "diagnose", "convert", *TRAINED},
    "threads": set(),
    "device": set(),
    "trust_remote_code": set(),
    "data": {"data"},
    "data.retrieval": {"data", "diagnose"},
    "data.retrieval.": {"data"},
    "diagnose": {"diagnose"},
    "diagnose.tradeoff": {"tradeoff"},
    "diagnose.keep": {"tradeoff"},
    "diagnose.keep.tasks": {"promise"},
    "diagnose.penalty": {"diagnose:hybrid"},
    "diagnose.context_length": set(),
    "diagnose.draft_length": set(),
    "diagnose.selector.workers": set(),
    "diagnose.selector.storage": set(),
    "convert": {"convert", *TRAINED},
    "align": TRAINED,
    "align.memory_gib": set(),
    "diagnose.memory_gib": set(),
    "align.data": {"data:align", *TRAINED},
    "align.data.": {"data:align"},  # the text is as it was here: what comes of a data stage is another matter
    "connect": TRAINED,
    "connect.save_seconds": set(),
    "connect.report_to": set(),
    "connect.teacher_device": set(),
    "connect.data": {"data:connect", *TRAINED},
    "connect.data.": {"data:connect"},
    "distill": TRAINED,
    "distill.save_seconds": set(),
    "distill.report_to": set(),
    "distill.teacher_device": set(),
    "distill.teacher_store.folder": set(),
    "distill.data": {"data:distill", *TRAINED},
    "distill.data.": {"data:distill"},
    "finetune": {"finetune", "evaluate"},
    "finetune.save_seconds": set(),
    "finetune.report_to": set(),
    "finetune.teacher_device": set(),
    "finetune.data": {"data:finetune", "finetune", "evaluate"},
    "finetune.data.": {"data:finetune"},
    "arms": {"evaluate"},
    "arms.NAME": {"distill:arm", "finetune:arm", "evaluate"},
    "arms.NAME.selector": {"diagnose:arm"},
    "arms.NAME.selector.workers": set(),
    "arms.NAME.selector.storage": set(),
    "arms.NAME.by": {"diagnose:arm"},
    "arms.NAME.budget": {"diagnose:arm"},
    "arms.NAME.target": {"convert:arm", "distill:arm", "finetune:arm", "evaluate"},
    "arms.NAME.init": {"convert:arm", "distill:arm", "finetune:arm", "evaluate"},
    "arms.NAME.finetune": {"finetune:arm", "evaluate"},
    "evaluate": {"evaluate"},
    **{f"{where}.server.{field}": set() for where in SERVERS for field in ("url", "requests", "retries")},
}

_SIGNATURES: dict[str, list[str]] = {}  # no model changes here
Row = tuple[str, type[BaseModel], str]
ROWS: dict[tuple[str, str, str], Row] = {
    (path, section.__name__, name): (path, section, name) for path, section, name, _ in fields()
}
KINDS: dict[str, list[type[BaseModel]]] = {}
for _path, _section, _name in ROWS.values():
    if _name == "kind":
        KINDS.setdefault(_path, []).append(_section)


def value_of(path: str, section: type[BaseModel], name: str) -> Any:
    """Another value of a field; a test fails for a field that the table does not have."""
    if name == "kind":
        others = [other for other in KINDS[path] if other is not section]
        return start_of(others[0]) if others else None
    value = VALUES[declared(section, name)]
    return value[path] if isinstance(value, dict) and path in value else value


def declared(section: type[BaseModel], name: str) -> str:
    """A field by the class that declares it first."""
    first = next(one for one in reversed(section.__mro__) if name in vars(one).get("__annotations__", {}))
    return f"{first.__name__}.{name}"


def start_of(section: type[BaseModel]) -> dict[str, Any]:
    kind = {"kind": section.model_fields["kind"].default} if "kind" in section.model_fields else {}
    return {**kind, **REQUIRED.get(section.__name__, {})}


def expected(path: str, name: str) -> set[str]:
    where = f"{path}.{name}".lstrip(".")
    if name == "kind":
        where = f"{path}." if f"{path}." in STEPS else path
    if where in STEPS:
        return STEPS[where]
    while path:
        if f"{path}." in STEPS:
            return STEPS[f"{path}."]
        if path in STEPS:
            return STEPS[path]
        path = path.rpartition(".")[0]
    raise KeyError(where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and what the stages of a run would have left, as far as what depends on it is told by it."""
    folder = tmp_path_factory.mktemp("fields")
    tiny.save("llama", folder / "model")
    tiny.save("llama", folder / "other", seed=1)
    for stage in ("", "align", "connect", "distill", "finetune"):
        (folder / "out" / "data" / stage).mkdir(parents=True)
        for split in (*SPLITS, *RETRIEVAL):
            (folder / "out" / "data" / stage / f"{split}.jsonl").write_text(f"{stage} {split}")
    point = {"budget": 2, "layers": [0, 2], "kl": 0, "kl_interval": [0, 0], "acceptance_rate": 1, "accepted_length": 4}
    write_json(folder / "out" / "tradeoff.json", {"points": [point], "budget": 2})
    tried = {"budget": 2, "layers": [0, 2], "tasks": {}, "is_kept": True}
    write_json(folder / "out" / "promise.json", {"keep": {}, "candidates": [tried], "budget": 2})
    for name in (".", "arms/arm"):
        hybrid = folder / "out" / name
        hybrid.mkdir(parents=True, exist_ok=True)
        write_plan(hybrid / "plan.json", "model", replace=[0, 2])
        assert Plan.load(hybrid / "plan.json").replace == [0, 2]
        for model in ("start", "distilled", "student"):
            (hybrid / model).mkdir()
            (hybrid / model / "config.json").write_text("{}")
    small_recipe(folder, {}, diagnose={"budget": 2, "by": "redundancy"}, finetune={}, arms={"arm": {}})
    return folder


@cache
def depends(folder: Path, *overrides: str) -> dict[str, Any]:
    """The inputs of every step of the run, with a changed recipe."""
    context = Context(load_recipe(folder / "recipe.yaml", overrides), folder / "out")
    context._signatures = _SIGNATURES
    recipe = context.recipe
    found: dict[str, Any] = {}
    for step, stage, settings in (
        ("data", None, recipe.data),
        *((f"data:{stage}", stage, settings) for stage, settings in recipe.own_data.items()),
    ):
        found[step] = inputs.data_inputs(context, settings)
        hashes = [hash_file(path) for path in inputs.splits_in(context.folder.data(stage), settings)]
        context.folder.steps[step] = {"inputs": found[step], "outputs": hashes}
    if recipe.diagnose.tradeoff or recipe.diagnose.budget == "auto":
        found["tradeoff"] = inputs.tradeoff_inputs(context, Curve())
    if recipe.diagnose.keep is not None and recipe.diagnose.keep.tasks:
        found["promise"] = inputs.promise_inputs(context)
    for arm in context.hybrids:
        found[f"diagnose:{arm.name}"] = inputs.diagnose_inputs(context, arm)
        found[f"convert:{arm.name}"] = inputs.convert_inputs(context, arm)
        found[f"distill:{arm.name}"] = inputs.distill_inputs(context, arm)
        if arm.finetune:
            found[f"finetune:{arm.name}"] = inputs.finetune_inputs(context, arm)
    found["evaluate"] = inputs.evaluate_inputs(context)
    return found


def override(path: str, value: Any) -> str:
    return f"{path.replace('NAME', 'arm')}={json.dumps(value)}"


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: f"{row[0]}.{row[2]}[{row[1].__name__}]".lstrip("."))
def test_a_changed_field_does_again_what_depends_on_it(folder: Path, row: Row) -> None:
    path, section, name = row
    value = value_of(*row)
    if name == "kind" and value is None:
        return  # there is but one
    if isinstance(value, str):
        value = value.replace("{folder}", str(folder))
    start: list[str] = []
    if "data.responses" in path:
        start = [override(path.partition(".responses")[0], {"kind": "jsonl", **REQUIRED["JsonlData"]})]
    elif path.endswith("data.retrieval"):
        start = [override(path.removesuffix(".retrieval"), {"kind": "jsonl", **REQUIRED["JsonlData"]})]
        start += [override(path, {})]
    elif path == "diagnose.keep" or (name == "keep" and path == "diagnose"):
        start = [override("diagnose.budget", "auto"), override("diagnose.keep", {"kl": 0.25})]
        start += [override("data.retrieval", {})] if name == "recall" else []
    elif "kind" in section.model_fields or path in (
        "distill.on_policy",
        "distill.teacher_store",
        "distill.rate_search",
        "distill.select",
    ):
        start = [override(path, start_of(section))]
    if path.endswith(".server"):
        start += [override(path, start_of(section))]
    if section.__name__ == "KLGuided":
        start += [override("diagnose.by", "replaceability")]
    if section.__name__ == "CutSettings":  # no block is fitted or trained
        start += [override("convert.init", "zero"), override("align", None)]
        start += [override(f"{stage}.other_learning_rate", 0.5) for stage in ("distill", "finetune")]
    if section.__name__ == "MassvSettings" or (path or name).partition(".")[0] == "connect":
        massv = {"convert.target": "massv", "convert.init": "zero", "align": None, "diagnose.budget": 0}
        massv |= {"teacher": f"{folder}/other", "distill.other_learning_rate": 0.5, "finetune.other_learning_rate": 0.5}
        massv |= {"connect": {}} if path.startswith("connect") else {}
        start = [*(override(field, given) for field, given in massv.items()), *start]
        value = {"kind": "cut"} if name == "kind" and section.__name__ == "MassvSettings" else value
    if (path, name) == ("", "align"):
        start = [override("convert.init", "zero")]  # the other starts need the fit
    change = override(path if name == "kind" else f"{path}.{name}".lstrip("."), value)
    before, after = depends(folder, *start), depends(folder, *start, change)
    different = {step for step in after if after[step] != before.get(step)}
    wanted = expected(path, name)
    if section.__name__ == "CutSettings":  # layers are judged by what goes of them
        wanted = wanted | {"diagnose:arm" if path.startswith("arms") else "diagnose"}
    if wanted >= {"data", "distill"}:
        wanted = wanted | {step for step in after if step.startswith("data:")}
    # `distill` stands for that of every hybrid.
    whole = {step for stage in wanted for step in after if step == stage or (step.partition(":")[0] == stage != "data")}
    assert different == whole | {step for step in wanted if ":" in step}


def test_no_row_is_left_over() -> None:
    assert VALUES.keys() == {declared(section, name) for _, section, name in ROWS.values() if name != "kind"}


def test_fields_that_one_objective_reads_count_where_it_is_chosen(folder: Path) -> None:
    for objective, field in (
        ("throughput-modelled", "context_length"),
        ("throughput-measured", "draft_length"),
    ):
        start = [override("diagnose.objective", objective)]
        before, after = depends(folder, *start), depends(folder, *start, override(f"diagnose.{field}", 9))
        assert {step for step in after if after[step] != before[step]} == {"diagnose:hybrid", "diagnose:arm"}


def test_by_replaceability_the_choice_depends_on_the_fit(folder: Path) -> None:
    start = [override("diagnose.by", "replaceability")]
    before = depends(folder, *start)
    for change in (override("align.steps", 5), override("convert.target.state", 16)):
        after = depends(folder, *start, change)
        assert {"diagnose:hybrid", "diagnose:arm"} <= {step for step in after if after[step] != before[step]}
    assert depends(folder, *start, override("align.memory_gib", 1.0)) == before
