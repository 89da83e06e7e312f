"""Damaged files of a finished run: each is refused in one line or made again, soon and in little memory."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mutations import damaged

import tiny
from radistill.batch_log import read_batches
from radistill.cli.plan import show
from radistill.conversion.inspection import inspect_source
from radistill.data.jsonl import read_examples
from radistill.data.records import DataSplits
from radistill.diagnosis.plan import Plan
from radistill.distillation.align import _restore
from radistill.distillation.teacher_store import StoredTeacher
from radistill.errors import RadistillError
from radistill.evaluation.comparison import compare_results, read_results
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.savings.measure import SavingsSettings, measure_savings
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.export.source import find_source
from radistill.files import read_json, read_kept
from radistill.models.loading import load
from radistill.pipeline.estimate import estimate
from radistill.pipeline.run import run
from radistill.report.page import write_report
from radistill.report.task_table import comparison_table
from radistill.runs.folder import RunFolder
from radistill.runs.recipe import load_recipe
from small_recipe import small_recipe

pytestmark = pytest.mark.slow

COUNT = 200
SECONDS = 10
MEMORY = 2**30


@dataclass
class Finished:
    """A run of a tiny model, with tasks and savings, and what its readers return of it undamaged."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def one(self, pattern: str) -> Path:
        """The first file of a pattern."""
        return min(self.out.glob(pattern))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("damage")
    model = load(tiny.save("llama", folder / "model"))
    recipe = small_recipe(
        folder,
        {"source": "teacher", "max_new_tokens": 12},
        diagnose={"budget": 2, "by": "redundancy", "selector": {"kind": "bayes", "trials": 5, "startup": 3}},
        align={"steps": 4},
        distill={"steps": 4, "tokens_per_batch": 200, "eval_steps": 2, "teacher_store": {"top_k": 8}},
        finetune={"steps": 2, "tokens_per_batch": 200, "eval_steps": 2},
        arms={
            "uniform": {
                "selector": "uniform", "by": "redundancy", "init": "zero", "align": None, "finetune": None,
                "rate": [1e-4, 1e-3],
            }
        },
        evaluate={"max_new_tokens": 12},
    )  # fmt: skip
    run(load_recipe(recipe), folder / "out")
    student = load(folder / "out" / "student")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": "some words of text " * n}) + "\n" for n in (1, 2)))
    settings = TaskSettings(
        data={"gsm8k": folder / "sums.jsonl", "perplexity": folder / "texts.jsonl"}, max_new_tokens=8
    )
    for name, of in (("base", model), ("hybrid", student)):
        run_tasks(of, tasks_of(["gsm8k", "perplexity"], settings), settings, folder / "out" / "tasks" / name)
    small = SavingsSettings(contexts=(32,), decode_tokens=2, repeats=1, draft_length=None)
    measure_savings(model, student, small, folder / "out" / "savings.json")
    return Finished(folder)


@contextmanager
def little_memory() -> Iterator[None]:
    """Whoever asks for a gibibyte more than there is in use gets a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def attack(path: Path, form: str, read: Callable[[], Any], check: Callable[[Any], bool] | None = None) -> None:
    """Damage a file in many ways; `check` says of what `read` returned whether it may stand."""
    data, failures, refused = path.read_bytes(), [], 0
    try:
        for what, content in damaged(data, COUNT, seed=len(data), form=form):
            path.write_bytes(content)
            started = time.monotonic()
            try:
                with little_memory():
                    found = read()
                if check is not None and content != data and not check(found):
                    failures.append(f"{what}: accepted")
            except RadistillError as error:
                refused += 1
                line = str(error)
                if "\n" in line or len(line) > 1000:
                    failures.append(f"{what}: a message of {len(line)} characters: {line[:200]!r}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            if time.monotonic() - started > SECONDS:
                failures.append(f"{what}: took {time.monotonic() - started:.0f} s")
    finally:
        path.write_bytes(data)
    assert not failures, f"{len(failures)} of {COUNT} ({path.name})\n" + "\n".join(failures[:40])
    assert refused or check is not None


# ---- what a user wrote ----


def test_recipe(finished: Finished) -> None:
    path = finished.folder / "recipe.yaml"
    data = path.read_bytes()
    path.write_text(json.dumps(yaml.safe_load(data)))  # which is YAML too
    tried: list[str] = []

    def read() -> None:
        recipe = load_recipe(path)
        if len(tried) < 10:  # it takes longest
            tried.append("")
            estimate(recipe)

    try:
        attack(path, "json", read)
    finally:
        path.write_bytes(data)
    attack(path, "bytes", lambda: load_recipe(path))


def test_data_of_a_user(finished: Finished) -> None:
    path = finished.folder / "data.jsonl"
    attack(path, "rows", lambda: read_examples(path))


def test_data_of_a_task(finished: Finished) -> None:
    path = finished.folder / "sums.jsonl"
    model, settings = tiny.model("llama"), TaskSettings(data={"gsm8k": path})
    (task,) = tasks_of(["gsm8k"], settings)
    attack(path, "rows", lambda: task.read(model, settings))  # type: ignore[union-attr]


# ---- what a run left, and what is told of it ----


@pytest.mark.parametrize(
    "name",
    ["plan.json", "run.json", "evaluation.json", "align.json", "distill.json", "savings.json", "recipe.yaml"],
)  # fmt: skip
def test_a_report(finished: Finished, name: str) -> None:
    form = "bytes" if name == "recipe.yaml" else "json"
    attack(finished.out / name, form, lambda: write_report(finished.out))


def test_plan(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished.out / "plan.json"
    attack(path, "json", lambda: show(path))
    attack(path, "json", lambda: find_source(finished.out))
    Plan.load(path)


def test_record(finished: Finished) -> None:
    attack(finished.out / "run.json", "json", lambda: RunFolder(finished.out).steps)


@pytest.mark.parametrize("task", ["gsm8k", "perplexity"])
def test_results_of_tasks(finished: Finished, task: str) -> None:
    folder = finished.out / "tasks"

    def read() -> None:
        results = [read_results(name, folder / name) for name in ("base", "hybrid")]
        comparison_table([one.name for one in results], compare_results(results))

    attack(folder / "hybrid" / f"{task}.jsonl", "rows", read)


def test_a_summary_of_tasks(finished: Finished) -> None:
    """A report leaves out what is damaged and says so; to compare it is refused."""
    folder = finished.out / "tasks" / "hybrid"
    attack(folder / "tasks.json", "json", lambda: write_report(finished.out), check=lambda page: page.is_file())
    attack(folder / "tasks.json", "json", lambda: read_results("hybrid", folder))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prepared_data(finished: Finished, split: str) -> None:
    attack(finished.out / "data" / f"{split}.jsonl", "rows", lambda: DataSplits.load(finished.out / "data"))


# ---- what can be made again ----


@pytest.mark.parametrize(
    "pattern", ["data/responses.jsonl", "tasks/hybrid/answers/*.jsonl", "search/trials-*.jsonl"]
)  # fmt: skip
def test_caches(finished: Finished, pattern: str) -> None:
    path = finished.one(pattern)
    whole = read_batches(path)
    attack(path, "rows", lambda: read_batches(path), lambda found: found.items() <= whole.items())


@pytest.mark.parametrize("pattern", ["aligned/*.json", "arms/uniform/rates/*/kl.json", "teacher_store-*.json"])
def test_kept_records(finished: Finished, pattern: str) -> None:
    path = finished.one(pattern)
    key = read_json(path)["key"]
    whole = read_kept(path, key)
    assert whole is not None
    attack(path, "json", lambda: read_kept(path, key), lambda found: found is None or found == whole)


def test_aligned_blocks(finished: Finished) -> None:
    record, weights = finished.one("aligned/*.json"), finished.one("aligned/*.safetensors")
    key, layer = read_json(record)["key"], int(record.name.split("-")[1])
    start = load(finished.out / "start")
    block = start.network.model.layers[layer].mamba  # type: ignore[union-attr,index]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}  # type: ignore[operator,union-attr]

    def untouched(found: object) -> bool:
        return found is None and all(torch.equal(block.state_dict()[name], one) for name, one in before.items())  # type: ignore[operator,union-attr]

    attack(weights, "tensors", lambda: _restore(block, layer, finished.out / "aligned", key), untouched)  # type: ignore[arg-type]
    assert _restore(block, layer, finished.out / "aligned", key) is not None  # type: ignore[arg-type]


def test_teacher_store(finished: Finished) -> None:
    splits = DataSplits.load(finished.out / "data")
    documents = [*splits.documents("train"), *splits.documents("heldout")]
    header, shard = finished.one("teacher_store/*/store.json"), finished.one("teacher_store/*/*.safetensors")

    def read() -> Any:
        return StoredTeacher(header.parent, documents).of(documents)

    size, whole = len(read().ids), read_json(header)
    attack(header, "json", read, lambda _: bool(read_json(header) == whole))
    attack(shard, "tensors", read, lambda found: found.ids.shape == (size, 8) and len(found.best) == size)


# ---- a model folder ----


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_model(finished: Finished, name: str) -> None:
    folder = finished.out / "student"

    def read() -> None:
        inspect_source(str(folder))
        load(folder)

    attack(folder / name, "tensors" if name.endswith(".safetensors") else "json", read)
