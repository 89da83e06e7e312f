"""Tasks of lm-eval, where it is installed: a definition of one's own, on data of one's own."""

import json
import sys
from pathlib import Path

import pytest

import tiny
from radistill.errors import RadistillError
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks import task_of
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.models.loading import Model

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [red, blue]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    rows = [{"question": f"Colour number {n}:", "answer": n % 2} for n in range(5)]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.yaml").write_text(CHOICE.format(data=tmp_path / "rows.json"))
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


def test_a_task_of_lm_eval_gives_rows(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TaskSettings(data={"lm-eval:colours": folder}, batch_size=2)
    tasks = tasks_of(["lm-eval:colours"], settings)
    figures = run_tasks(model, tasks, settings, folder / "out")["lm-eval:colours"]
    assert figures["n"] == 5
    rows = [json.loads(line) for line in (folder / "out" / "lm-eval-colours.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == 5
    assert sum(row["correct"] for row in rows) == figures["correct"]
    # Every answer is kept: asked again, the model has nothing to do.
    monkeypatch.setattr(model.network, "forward", None)
    assert run_tasks(model, tasks, settings, folder / "out")["lm-eval:colours"] == figures


def test_a_task_that_lm_eval_does_not_have(model: Model, folder: Path) -> None:
    settings = TaskSettings(data={"lm-eval:colour": folder})
    with pytest.raises(RadistillError, match="lm-eval:colour: lm-eval has no such task"):
        run_tasks(model, tasks_of(["lm-eval:colour"], settings), settings, folder / "out")


def test_without_lm_eval_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RadistillError, match=r"pip install 'radistill\[lm-eval\]'"):
        task_of("lm-eval:arc_easy")
