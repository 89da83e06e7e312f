"""What each task asks, and how it reads an answer."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sandbox_here import needs_sandbox

import tiny
from radistill.errors import RadistillError
from radistill.evaluation.final_answer import extract_answer
from radistill.evaluation.results import Row
from radistill.evaluation.tasks import FAMILIES, TASKS, cruxeval, perplexity, task_of
from radistill.evaluation.tasks.interface import Generated, Measured, TaskSettings
from radistill.models.loading import Model
from radistill.processes import ALONE


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama", max_position_embeddings=8192)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def generated(name: str) -> Generated:
    task = task_of(name)
    assert isinstance(task, Generated)
    return task


WORD_PROBLEMS = [
    {"question": "Ann has 3 nets and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "A hall has 1,200 seats. Half are taken. How many?", "answer": "#### 600"},
    {"question": "Bo owes 5 coins and pays 9. What is left?", "answer": "5 - 9 = -4\n#### -4"},
]


def test_gsm8k_asks_and_reads(model: Model, tmp_path: Path) -> None:
    settings = TaskSettings(data={"gsm8k": lines(tmp_path / "rows.jsonl", WORD_PROBLEMS)})
    task = generated("gsm8k")
    examples = task.read(model, settings)
    assert [example.id for example in examples] == ["gsm8k-1", "gsm8k-2", "gsm8k-3"]
    assert examples[0].messages is not None
    assert examples[0].messages[0]["content"].startswith("Ann has 3 nets")
    assert "####" in examples[0].messages[0]["content"]
    said = ["So she has 7.\n#### 7", r"It is \boxed{600}", "#### -4 coins"]
    assert [task.judge(e, s).correct for e, s in zip(examples, said, strict=True)] == [True] * 3
    assert not task.judge(examples[0], "7 nets and then 8").correct
    assert task.judge(examples[0], "no idea").answer is None
    assert len(task.read(model, replace(settings, limit=2))) == 2


def test_gsm8k_few_shot_shows_worked_problems_that_are_right(model: Model, tmp_path: Path) -> None:
    settings = TaskSettings(data={"gsm8k": lines(tmp_path / "rows.jsonl", WORD_PROBLEMS)})
    task = generated("gsm8k-fewshot")
    text = task.read(model, settings)[0].text
    assert text is not None
    *shown, asked = text.split("Question: ")[1:]
    assert asked == "Ann has 3 nets and buys 4. How many?\nAnswer:"
    assert len(shown) == 8
    for problem in shown:
        steps, hashes, answer = problem.partition("\n#### ")
        assert hashes
        assert extract_answer(steps.partition("Answer:")[2]) == answer.strip()
    assert task.answer_in(" It is 4.\n#### 4\n\nQuestion: Next?") == ("It is 4.\n#### 4\n", True)
    assert task.answer_in(" It is") == (" It is", False)


def test_svamp_joins_story_and_question(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [
        {"Body": "Kim has 12 cups ", "Question": "How many are left if 5 break?", "Answer": 7.0},
        {"Body": "A bus holds 40.", "Question": "How many do 2 hold?", "Answer": 80.0},
    ]
    path.write_text(json.dumps(rows))
    task = generated("svamp")
    one, two = task.read(model, TaskSettings(data={"svamp": path}))
    assert one.messages is not None
    assert two.messages is not None
    assert one.messages[0]["content"].startswith("Kim has 12 cups. How many are left if 5 break?\n")
    assert two.messages[0]["content"].startswith("A bus holds 40. How many do 2 hold?\n")
    assert task.judge(one, "#### 7").correct
    assert task.judge(two, "That makes 80.00 people").correct


@needs_sandbox
def test_cruxeval_asks_for_both_sides(model: Model, tmp_path: Path) -> None:
    row = {"id": "s1", "code": "def f(n):\n    return {n: '{x}'}", "input": "3", "output": "{3: '{x}'}"}
    settings = TaskSettings(data={"cruxeval": lines(tmp_path / "rows.jsonl", [row])})
    for name, shown, hidden, right in (
        ("cruxeval-o", "f(3)", row["output"], "<answer>{3: '{x}'}</answer>"),
        ("cruxeval-i", row["output"], "f(3)", "<answer>f(1 + 2)</answer>"),
    ):
        task = generated(name)
        [example] = task.read(model, settings)
        assert example.messages is not None
        content = example.messages[0]["content"]
        assert row["code"] in content
        assert shown in content
        assert hidden not in content
        assert task.judge(example, right).correct
        assert not task.judge(example, "<answer>4</answer>").correct


def test_reasoning_gym_tasks_by_name(model: Model) -> None:
    task = generated("reasoning-gym:chain_sum")
    examples = task.read(model, TaskSettings(limit=3, seed=5))
    assert len(examples) == 3
    assert [e.prompt for e in task.read(model, TaskSettings(limit=3, seed=5))] == [e.prompt for e in examples]
    assert examples[0].verifier is not None
    assert task.judge(examples[0], f"The answer is {examples[0].verifier['answer']}").correct
    assert not task.judge(examples[0], "The answer is -123456").correct


def test_a_verifier_that_evaluates_answers_is_refused() -> None:
    with pytest.raises(RadistillError, match="evaluates a model's answer as Python"):
        task_of("reasoning-gym:countdown")


# ---- recall ----


@pytest.mark.parametrize("context", [256, 512])
def test_recall_fills_the_context_and_can_be_answered_from_it(model: Model, context: int) -> None:
    task = generated("recall")
    examples = task.read(model, TaskSettings(contexts=(context,), limit=6))
    groups = Counter(example.verifier["group"] for example in examples if example.verifier)
    assert groups == {f"key-value {context}": 6, f"needle {context}": 6}
    for example in examples:
        assert example.text is not None
        assert example.verifier is not None
        tokens = len(model.tokenizer(example.text)["input_ids"])
        assert context - 100 < tokens <= context
        # Who has read the text knows the answer; it stands there once, and what is asked for is what ends the text.
        assert example.text.count(example.verifier["answer"]) == 1
        key = example.text.rpartition("\n")[2].removesuffix(":") if "\n" in example.text else "The number of the"
        assert example.text.count(key) == 2
        for said, right in (
            (" {}\nsmall red boat: 1111", True),
            (" {}. The rain", True),
            (" 10{}", False),
            ("\n1\n{}", False),
        ):
            answer, _ = task.answer_in(said.format(example.verifier["answer"]))
            assert task.judge(example, answer).correct is right
    assert task.longest_answer(TaskSettings(max_new_tokens=500)) == 12


def test_what_recall_asks_for_lies_everywhere(model: Model) -> None:
    examples = generated("recall").read(model, TaskSettings(contexts=(512,), limit=30))
    depths = [e.text.index(e.verifier["answer"]) / len(e.text) for e in examples if e.text and e.verifier]
    assert min(depths) < 0.15
    assert max(depths) > 0.75


def test_contexts_that_a_model_cannot_hold_are_refused(model: Model) -> None:
    with pytest.raises(RadistillError, match=r"recall: a context of 9000 tokens .* beyond the 8192 tokens"):
        generated("recall").read(model, TaskSettings(contexts=(128, 9000)))
    with pytest.raises(RadistillError, match="no key-value text fits into 4 tokens"):
        generated("recall").read(model, TaskSettings(contexts=(4,)))


# ---- perplexity ----


def measured(model: Model, path: Path, tmp_path: Path, **settings: Any) -> list[Row]:
    rows: list[Row] = []
    task = task_of("perplexity")
    assert isinstance(task, Measured)
    task.measure(
        model, TaskSettings(data={"perplexity": path}, **settings), rows.append, tmp_path / "cache.jsonl", ALONE
    )
    return rows


def test_perplexity_is_the_loss_of_a_plain_forward(model: Model, tmp_path: Path) -> None:
    texts = ["A first short text.", "And a second one, which is rather longer.", "heading"]
    rows = measured(model, lines(tmp_path / "rows.jsonl", [{"text": text} for text in texts]), tmp_path)
    assert sorted(row["id"] for row in rows) == ["text-1", "text-2"]  # a word alone has next to nothing to predict
    for row in rows:
        text = texts[row["number"]]
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss = model.network(input_ids=ids, labels=ids).loss
        assert row["nats"] == pytest.approx(float(loss) * (ids.shape[1] - 1), rel=1e-5)
        assert (row["tokens"], row["bytes"]) == (ids.shape[1] - 1, len(text))


def test_perplexity_counts_only_responses_and_reads_long_texts_in_windows(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = measured(model, lines(tmp_path / "a.jsonl", [{"prompt": "Say yes.", "response": "yes"}]), tmp_path)
    assert (row["tokens"], row["bytes"]) == (4, 3)  # the end of the turn is predicted too
    monkeypatch.setattr(perplexity, "_TOKENS_PER_BATCH", 64)
    [row] = measured(model, lines(tmp_path / "b.jsonl", [{"text": "ab " * 50}]), tmp_path)
    assert row["tokens"] == 150 - 3  # each of the three windows starts with a token that nothing predicts
    assert math.isfinite(row["nats"])


def test_perplexity_needs_texts(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match="text-1 has no response"):
        measured(model, lines(tmp_path / "a.jsonl", [{"prompt": "Say yes."}]), tmp_path)
    with pytest.raises(RadistillError, match="no row has a text of at least two words"):
        measured(model, lines(tmp_path / "b.jsonl", [{"text": "one"}]), tmp_path)


# ---- data and names ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("{", "not valid JSON"),
        ('[{"question": 1}', "not valid JSON"),
        ('{"question": "?"}\n', "row 1: has no answer, which gsm8k needs"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        (
            '{"question": "?", "answer": "1"}\n{"question": "\\ud800"}',
            r"line 2: not valid JSON \(half a surrogate pair",
        ),
        ("3\n", "row 1: has no question, answer"),
    ],
)
def test_data_that_cannot_be_read_is_named(model: Model, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(RadistillError, match=message) as error:
        generated("gsm8k").read(model, TaskSettings(data={"gsm8k": path}))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("gsm8k", {"answer": "none at all"}, "its answer has no number: 'none at all'"),
        ("gsm8k", {"answer": "7 + 3\n#### x"}, "its answer has no number"),
        ("gsm8k-fewshot", {"answer": "####"}, "its answer has no number"),
        ("svamp", {"Answer": "many"}, "its answer has no number: 'many'"),
        ("cruxeval-o", {"output": "V()"}, r"output is no Python literal: 'V\(\)'"),
        ("cruxeval-i", {"output": "[" * 3000}, "output is no Python literal"),
        ("cruxeval-o", {"output": 3}, "output is not a text"),
        ("cruxeval-i", {"code": "def f(:"}, "code is no Python"),
        ("cruxeval-o", {"input": "1), (2"}, r"input is no list of arguments: '1\), \(2'"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_with_its_number(
    model: Model, tmp_path: Path, task: str, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cruxeval, "layers", lambda: ())
    row = {"question": "?", "answer": "#### 7", "Body": "A.", "Question": "?", "Answer": 7.0,
           "code": "def f(x): return x", "input": "1", "output": "1"}  # fmt: skip
    path = lines(tmp_path / "rows.jsonl", [row, row | change])
    assert len(generated(task).read(model, TaskSettings(data={task: path}, limit=1))) == 1
    with pytest.raises(RadistillError, match=rf"rows.jsonl, row 2: {message}"):
        generated(task).read(model, TaskSettings(data={task: path}))


HOSTILE = ["[" * 1200, "9" * 5000, "1e999999999", "#### 1/0", "\ud800", "\0", "", "-" * 5000 + "1", "exit()"]


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "recall", "reasoning-gym:chain_sum", "reasoning-gym:jugs"])
def test_hostile_answers_are_wrong_and_end_nothing(name: str, model: Model, tmp_path: Path) -> None:
    rows = [WORD_PROBLEMS[0] | {"Body": "A.", "Question": "?", "Answer": 7.0}]
    data = {name: lines(tmp_path / "rows.jsonl", rows)} if name in ("gsm8k", "svamp") else {}
    task = generated(name)
    [example, *_] = task.read(model, TaskSettings(data=data, limit=1, contexts=(256,) if name == "recall" else None))
    for said in HOSTILE:
        for response in (said, f"<answer>{said}</answer>", f"The answer is {said}"):
            assert task.judge(example, task.answer_in(response)[0]).correct is False


def test_a_missing_file_and_a_missing_hub_are_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match=r"none\.jsonl: no such file"):
        generated("gsm8k").read(model, TaskSettings(data={"gsm8k": tmp_path / "none.jsonl"}))
    with pytest.raises(RadistillError, match=r"cannot be loaded from the hub .* give a file with --data svamp=PATH"):
        generated("svamp").read(model, TaskSettings())


def test_every_task_is_found_by_its_name() -> None:
    assert all(task_of(name).name == name for name in TASKS)
    with pytest.raises(RadistillError, match="no task 'gsm8'; did you mean gsm8k"):
        task_of("gsm8")
    for family in FAMILIES:
        with pytest.raises(RadistillError, match=f"Known: .*{family}:NAME"):
            task_of(f"{family}:")
