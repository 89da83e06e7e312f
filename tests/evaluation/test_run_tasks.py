"""Tasks on a tiny model: what is left in the folder, and that a kill changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from fake_server import Fake, serving
from radistill.errors import RadistillError
from radistill.evaluation import run_tasks as module
from radistill.evaluation.comparison import read_results
from radistill.evaluation.run_tasks import run_tasks, tasks_of
from radistill.evaluation.tasks import perplexity
from radistill.evaluation.tasks.interface import TaskSettings
from radistill.files import hash_file
from radistill.models import generation
from radistill.models.loading import Model
from radistill.models.server.served import Server
from radistill.models.server.settings import ServerSettings

PROBLEMS = [{"question": f"What is {n} and {n * n}?", "answer": f"#### {n + n * n}"} for n in range(1, 10)]
TEXTS = [{"text": "Some words of a text. " * n} for n in range(1, 8)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("granitemoehybrid")


@pytest.fixture
def settings(tmp_path: Path) -> TaskSettings:
    data = {}
    for name, rows in (("gsm8k", PROBLEMS), ("perplexity", TEXTS)):
        data[name] = tmp_path / f"{name}-rows.jsonl"
        data[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskSettings(data=data, batch_size=2, max_new_tokens=6)


def rows_of(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def test_every_answer_is_kept(model: Model, settings: TaskSettings, tmp_path: Path) -> None:
    figures = run_tasks(model, tasks_of(["gsm8k", "perplexity"], settings), settings, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "gsm8k")
    assert [row["number"] for row in rows] == list(range(9))
    assert [row["expected"] for row in rows] == [problem["answer"] for problem in PROBLEMS]
    assert all(row["prompt"][0]["content"].startswith("What is") and 1 <= row["response_tokens"] <= 6 for row in rows)
    assert figures["gsm8k"]["unfinished"] == sum(not row["finished"] for row in rows)
    assert figures["gsm8k"]["n"] == 9
    assert len(rows_of(tmp_path / "out", "perplexity")) == 7
    summary = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert summary["tasks"] == figures
    assert summary["fingerprint"] == model.fingerprint
    assert {"versions", "machine", "dtype"} <= summary.keys()
    asked = figures["gsm8k"]["settings"]
    assert (asked["max_new_tokens"], asked["batch_size"], asked["data"]) == (6, 2, "gsm8k-rows.jsonl")
    assert asked["data_sha256"] == hash_file(settings.data["gsm8k"])


def killed_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    left = [calls]

    def run(*arguments: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return function(*arguments)

    return run


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize(
    ("task", "where", "name"), [("gsm8k", generation, "_run"), ("perplexity", perplexity, "_nats")]
)
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    task: str, where: Any, name: str, calls: int, model: Model, settings: TaskSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(perplexity, "_TOKENS_PER_BATCH", 160)
    tasks = tasks_of([task], TaskSettings())
    run_tasks(model, tasks, settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed_after(calls, getattr(where, name)))
        with pytest.raises(KeyboardInterrupt):
            run_tasks(model, tasks, settings, tmp_path / "killed")
    assert not (tmp_path / "killed" / f"{task}.jsonl").exists()
    if calls:
        with (tmp_path / "killed" / "answers" / f"{task}.jsonl").open("a") as cache:
            cache.write('{"key": "to')  # the kill came while a line was written
    again = killed_after(99, getattr(where, name))
    monkeypatch.setattr(where, name, again)
    run_tasks(model, tasks, settings, tmp_path / "killed")
    for file in (f"{task}.jsonl", "tasks.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_second_run_computes_nothing(
    model: Model, settings: TaskSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of(["gsm8k", "perplexity"], settings)
    first = run_tasks(model, tasks, settings, tmp_path / "out")
    monkeypatch.setattr(generation, "_run", killed_after(0, generation._run))
    monkeypatch.setattr(perplexity, "_nats", killed_after(0, perplexity._nats))
    assert run_tasks(model, tasks, settings, tmp_path / "out") == first


def test_an_evaluation_that_fails_leaves_what_was_there(
    model: Model, settings: TaskSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tasks(model, tasks_of(["gsm8k", "perplexity"], settings), settings, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}
    with pytest.raises(RadistillError, match=r"--data gsm8k=nowhere\.jsonl: no such file"):
        tasks_of(["gsm8k"], TaskSettings(data={"gsm8k": Path("nowhere.jsonl")}))
    settings.data["svamp"] = tmp_path / "svamp.jsonl"
    settings.data["svamp"].write_text('{"question_concat": "How many?"}')
    with pytest.raises(RadistillError, match="row 1: has no"):  # before a single word problem is answered
        run_tasks(model, tasks_of(["gsm8k", "perplexity", "svamp"], settings), settings, tmp_path / "out")
    settings.data["gsm8k"].write_text(json.dumps({"question": "Another?", "answer": "#### 1"}))
    monkeypatch.setattr(generation, "_run", killed_after(0, generation._run))
    with pytest.raises(KeyboardInterrupt):
        run_tasks(model, tasks_of(["perplexity", "gsm8k"], TaskSettings()), settings, tmp_path / "out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")}


def test_a_kill_between_rows_and_figures_leaves_no_figures_of_other_rows(
    model: Model, settings: TaskSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of(["gsm8k", "perplexity"], settings)
    run_tasks(model, tasks, settings, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", killed_after(0, module.write_text))
        with pytest.raises(KeyboardInterrupt):
            run_tasks(model, tasks, settings, tmp_path / "out")
    assert list(read_results("m", tmp_path / "out").rows) == ["perplexity"]
    assert list(run_tasks(model, tasks, settings, tmp_path / "out")) == ["gsm8k", "perplexity"]


def answering(monkeypatch: pytest.MonkeyPatch, texts: list[str], model: Model, ended: bool) -> None:
    """Let `generate` give these texts."""

    def generate(_: Model, prompts: list[list[int]], on_response: Callable[..., None], **__: Any) -> None:
        for index, text in enumerate(texts[: len(prompts)]):
            on_response(index, [*model.tokenizer(text)["input_ids"], *([259] if ended else [])])

    monkeypatch.setattr(module, "generate", generate)


def test_unfinished_answers_count_as_they_stand_and_are_shown_apart(
    model: Model, settings: TaskSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"#### {n + n * n}" if n <= 5 else "I think that" for n in range(1, 10)]
    for ended in (True, False):
        answering(monkeypatch, texts, model, ended)
        figures = run_tasks(model, tasks_of(["gsm8k"], TaskSettings()), settings, tmp_path / str(ended))["gsm8k"]
        assert (figures["correct"], figures["unfinished"]) == (5, 0 if ended else 9)
        low, high = figures["interval"]
        assert low < 5 / 9 < high


def test_a_hostile_answer_is_one_wrong_row(
    model: Model, settings: TaskSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["[" * 1200, "9" * 5000, "\ud800 #### 12", *["#### 12"] * 6]
    monkeypatch.setattr(model.tokenizer, "decode", lambda tokens, **_: said[tokens[0]])

    def generate(_: Model, prompts: list[list[int]], on_response: Callable[..., None], **__: Any) -> None:
        for index in range(len(prompts)):
            on_response(index, [index])

    monkeypatch.setattr(module, "generate", generate)
    figures = run_tasks(model, tasks_of(["gsm8k"], TaskSettings()), settings, tmp_path / "out")["gsm8k"]
    assert (figures["n"], figures["correct"]) == (9, 1)
    assert [row["response"] for row in rows_of(tmp_path / "out", "gsm8k")] == said


def test_what_follows_the_stop_is_not_the_answer(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ["x"] * 4, model, ended=False)
    settings = TaskSettings(contexts=(256,), limit=2)
    tasks = tasks_of(["recall"], settings)
    assert run_tasks(model, tasks, settings, tmp_path / "a")["recall"]["correct"] == 0
    answers = [row["expected"] for row in rows_of(tmp_path / "a", "recall")]
    answering(monkeypatch, [f" {answer}\n{answers[0][::-1]}" for answer in answers], model, ended=False)
    figures = run_tasks(model, tasks, settings, tmp_path / "a")["recall"]
    assert (figures["accuracy"], figures["unfinished"]) == (1.0, 0)
    assert {name: line["n"] for name, line in figures["groups"].items()} == {"key-value 256": 2, "needle 256": 2}


def test_a_folder_belongs_to_one_model(model: Model, settings: TaskSettings, tmp_path: Path) -> None:
    tasks = tasks_of(["perplexity"], TaskSettings())
    run_tasks(model, tasks, settings, tmp_path / "out")
    with pytest.raises(RadistillError, match=r"has results of another model .* choose another folder with --out"):
        run_tasks(tiny.model("llama"), tasks, settings, tmp_path / "out")
    (tmp_path / "out" / "tasks.json").write_text("[]")
    with pytest.raises(RadistillError, match="not a summary of tasks"):
        run_tasks(model, tasks, settings, tmp_path / "out")


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_generated(
    model: Model, settings: TaskSettings, tmp_path: Path
) -> None:
    long = TaskSettings(data=settings.data, max_new_tokens=500)
    with pytest.raises(RadistillError, match=r"gsm8k: gsm8k-4 has a prompt of \d+ tokens; .*lower --max-new-tokens"):
        run_tasks(model, tasks_of(["gsm8k"], TaskSettings()), long, tmp_path / "out")


def test_settings_that_no_task_reads_are_refused(settings: TaskSettings) -> None:
    with pytest.raises(RadistillError, match="perplexity=…: none of the tasks \\(gsm8k\\) reads it"):
        tasks_of(["gsm8k"], settings)
    with pytest.raises(RadistillError, match="gsm8k is named twice"):
        tasks_of(["gsm8k", "gsm8k"], TaskSettings())
    with pytest.raises(RadistillError, match="--contexts is for the task recall"):
        tasks_of(["gsm8k"], TaskSettings(contexts=(128,)))


def test_a_server_answers_in_its_place(model: Model, settings: TaskSettings, tmp_path: Path) -> None:
    """The same rows; a server that goes away in between loses nothing, and a task that reads is refused by name."""
    names = ["gsm8k", "recall-needle"]
    settings = replace(settings, contexts=(400,), limit=4)
    tasks = tasks_of(names, TaskSettings())
    expected = run_tasks(model, tasks, settings, tmp_path / "here")
    without = tiny.model("granitemoehybrid")
    without.network.to("meta")

    def asked(fake: Fake, *, chosen: list[str] = names) -> Any:
        server = Server(ServerSettings(url=fake.address, retries=0, requests=2), model.tokenizer)
        return run_tasks(without, tasks_of(chosen, TaskSettings()), settings, tmp_path / "served", server=server)

    with serving(Fake(model, dies_after=6)) as fake, pytest.raises(RadistillError, match="cannot be reached"):
        asked(fake)
    assert (tmp_path / "served" / "gsm8k.jsonl").exists()
    with serving(Fake(model)) as fake:
        found = asked(fake)
        assert fake.texts == 2
        with pytest.raises(RadistillError, match="perplexity: does more than let a model write, so a server cannot"):
            asked(fake, chosen=["gsm8k", "perplexity"])
        assert fake.texts == 2
    assert found == expected
    for name in names:
        assert rows_of(tmp_path / "served", name) == rows_of(tmp_path / "here", name)
    summary = json.loads((tmp_path / "served" / "tasks.json").read_text())
    assert (summary["dtype"], summary["server_model"]) == ("unknown", "tiny")
    with pytest.raises(RadistillError, match="has results of another model"):
        run_tasks(model, tasks, settings, tmp_path / "served")
