"""Each source: the rows that it reads, and what it says when it cannot."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from radistill.data.examples import Example
from radistill.data.reasoning_gym import read as read_exercises
from radistill.data.records import example_of
from radistill.data.settings import HubData, JsonlData, ReasoningGymData
from radistill.data.sources import SOURCES, Draw, draw
from radistill.errors import RadistillError


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int, name: str = "question") -> list[dict[str, str]]:
    return [{"prompt": f"{name} {number}?"} for number in range(count)]


def split(result: Draw) -> tuple[set[str], set[str], set[str]]:
    train, calibration, heldout = (
        {example.prompt for example in part} for part in (result.train, result.calibration, result.heldout)
    )
    return train, calibration, heldout


def one(tmp_path: Path, row: Any) -> Example:
    """The example that a row becomes: the training one of a file with another row, which is held out."""
    path = write(tmp_path / "rows.jsonl", [row])
    other = write(tmp_path / "other.jsonl", [{"text": "something else"}])
    settings = JsonlData(path=path, heldout_path=other, train=1, calibration=1, heldout=1)
    return draw(settings, 0).train[0]


USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}


def test_the_formats(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "Hello?"})
    assert found == Example("rows-1", messages=(USER,))
    assert one(tmp_path, {"prompt": "Hello?", "response": "Hello."}).response == "Hello."
    assert one(tmp_path, {"prompt": "Hello?", "response": None}).response is None
    assert one(tmp_path, {"prompt": "Hello?", "response": ""}).response == ""
    assert one(tmp_path, {"text": "Once."}) == Example("rows-1", text="Once.")
    turns = [USER, ASSISTANT, USER, {"role": "assistant", "content": "Again."}]
    found = one(tmp_path, {"messages": turns})
    assert found.messages == tuple(turns[:3])
    assert found.response == "Again."
    found = one(tmp_path, {"messages": turns[:3], "source": "a further key"})
    assert found.messages == tuple(turns[:3])
    assert found.response is None
    # Where several are there, as in many data sets on the hub, messages come first.
    found = one(tmp_path, {"text": "t", "prompt": "p", "messages": [USER, ASSISTANT]})
    assert found.messages == (USER,)
    assert one(tmp_path, {"prompt": "2+2?", "answer": 4}).verifier == {"kind": "answer", "answer": "4"}


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


def called(arguments: object) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_turns_as_apis_write_them(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    nothing = {"name": None, "tool_calls": [], "refusal": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [called('{"city": "Oslo"}')], "function_call": None}
    found = one(tmp_path, {"messages": [{"role": "user", "content": parts, **nothing}, answer], "tools": [called({})]})
    assert found.messages == ({"role": "user", "content": "2+2?"},)
    assert found.response == ""
    assert found.response_fields == {"tool_calls": [called({"city": "Oslo"})]}
    assert found.tools == (called({}),)
    assert one(tmp_path, {"prompt": "a", "tools": json.dumps([called({})])}).tools == (called({}),)
    silent = {"role": "assistant", "tool_calls": [called("")]}
    assert one(tmp_path, {"messages": [USER, silent]}).response_fields == {"tool_calls": [called({})]}
    assert example_of(json.loads(json.dumps(found.to_row()))) == found


def test_other_calls_make_another_example(tmp_path: Path) -> None:
    def row(city: str) -> dict[str, Any]:
        return {"messages": [USER, {"role": "assistant", "tool_calls": [called({"city": city})]}]}

    path = write(tmp_path / "rows.jsonl", [row("Oslo"), row("Rome"), row("Oslo"), {"prompt": "a"}])
    own = write(tmp_path / "own.jsonl", [{"prompt": "b"}])
    result = draw(JsonlData(path=path, heldout_path=own, train=3, calibration=1, heldout=1), 0)
    assert len(result.train) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "label": 3}, "line 1: needs one of .* it has: question, label"),
        ({"response": "only"}, "needs one of"),
        ({}, "it has: no keys"),
        ({"prompt": None}, "it has: prompt"),
        ([1], "a row must be a JSON object, not a list"),
        ("text", "not a text"),
        (None, "not nothing"),
        ({"prompt": 3}, "prompt must be a text, not a number"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"text": ""}, "text is empty"),
        ({"text": ["a"]}, "text must be a text, not a list"),
        ({"prompt": "a", "response": 3.5}, "response must be a text, not a number"),
        ({"messages": "hello"}, "messages must be a list of turns, not a text"),
        ({"messages": []}, "messages must be a list of turns, not an empty list"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object, not a text"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be a text, not nothing"),
        ({"messages": [USER, {"role": True, "content": "a"}]}, r"messages\[1\].role must be a text, not true or false"),
        ({"messages": [ASSISTANT]}, "no turn before the assistant's response"),
        ({"messages": [{**USER, "content": [IMAGE]}]}, r"messages\[0\].content\[0\] is 'image_url', but only parts of"),
        ({"messages": [{**USER, "content": ["a"]}]}, r"messages\[0\].content\[0\] is 'a text', but only parts of"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": "now"}]}, r"messages\[1\].tool_calls must be a list of obj"),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [called("{")]}]},
            r"messages\[1\].tool_calls: arguments: not v",
        ),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [called("[" * 10**5)]}]}, "arguments: not valid JSON .nested"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [called('{"a": NaN}')]}]}, "arguments: not valid JSON"),
        ({"prompt": "a", "tools": "now"}, "tools: not valid JSON"),
        ({"prompt": "a", "tools": {"a": 1}}, "tools must be a list of objects, not an object"),
        ({"prompt": "a", "answer": [1]}, "answer must be a text or a number, not a list"),
        ({"prompt": "a", "answer": " "}, "answer is empty"),
        ({"prompt": "\ud800"}, "half a surrogate pair"),
        ({"prompt": "a", "system": "Be brief."}, "line 1: system is not read, so the conversation would go without it"),
        ({"prompt": "a", "completion": "b"}, "line 1: completion is not read, .* give it as response"),
        ({"messages": [{"role": "user", "content": "a"}], "documents": [{}]}, "line 1: documents is not read"),
    ],
)
def test_rows_that_are_not_understood(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(RadistillError, match=message) as caught:
        one(tmp_path, row)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 1: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "has no rows"),
        (b"\n  \n\n", "has no rows"),
        (b'{"prompt": "a"}\n\n{"prompt": ', "line 3: not valid JSON"),
        (b'{"prompt": "a"} {"prompt": "b"}', "line 1: not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8 text"),
        (b"PAR1\x00\x80", "not UTF-8 text"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RadistillError, match=message):
        draw(JsonlData(path=path), 0)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match="is a folder, not a file"):
        draw(JsonlData(path=tmp_path), 0)


def test_line_separators_within_a_text_end_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "a\u2028b\x85c"
    path.write_text("\ufeff" + json.dumps({"text": text}, ensure_ascii=False) + "\r\n" + '{"text": "d"}', "utf-8")
    result = draw(JsonlData(path=path, train=1, calibration=1, heldout=1), 0)
    assert {result.train[0].text, result.heldout[0].text} == {text, "d"}


def test_splits_share_no_prompt(tmp_path: Path) -> None:
    rows = questions(30) + questions(30)  # each twice
    path = write(tmp_path / "rows.jsonl", rows)
    settings = JsonlData(path=path, train=15, calibration=5, heldout=10, calibration_from="own")
    train, calibration, heldout = split(draw(settings, 0))
    assert (len(train), len(calibration), len(heldout)) == (15, 5, 10)
    assert len(train | calibration | heldout) == 30


def test_several_responses_to_a_prompt_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "response": answer} for number in range(4) for answer in "aab"]
    path = write(tmp_path / "rows.jsonl", rows)
    result = draw(JsonlData(path=path, train=6, calibration=1, heldout=1), 3)
    assert len({(example.prompt, example.response) for example in result.train}) == 6
    assert result.heldout[0].prompt not in {example.prompt for example in result.train}


def test_a_file_for_the_heldout_split(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", questions(10))
    own = write(tmp_path / "own.jsonl", questions(3) + questions(3, "other"))
    settings = JsonlData(path=path, heldout_path=own, train=7, calibration=1, heldout=6)
    train, _, heldout = split(draw(settings, 0))
    assert len(heldout) == 6
    assert not train & heldout
    settings = settings.model_copy(update={"train": 8})
    with pytest.raises(
        RadistillError, match=r"data.train: 8 asked for, 7 there \(.*rows.jsonl; 6 already .* 3 left out"
    ):
        draw(settings, 0)


def test_what_did_not_happen_is_not_counted(tmp_path: Path) -> None:
    settings = JsonlData(path=write(tmp_path / "rows.jsonl", questions(3)), train=9, calibration=1, heldout=1)
    with pytest.raises(RadistillError) as refusal:
        draw(settings, 0)
    said = f"({tmp_path / 'rows.jsonl'}; 1 already in other splits); ask for fewer or give more data"
    assert str(refusal.value) == f"data.train: 9 asked for, 2 there {said}"


def test_the_heldout_split_does_not_depend_on_the_other_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", questions(100))
    small = draw(JsonlData(path=path, train=5, calibration=5, heldout=10), 1)
    large = draw(JsonlData(path=path, train=70, calibration=20, heldout=10, calibration_from="own"), 1)
    assert small.heldout == large.heldout
    assert draw(JsonlData(path=path, train=5, calibration=5, heldout=10), 2).heldout != small.heldout


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 100}, "data.train: 100 asked for, 37 there"),
        ({"heldout": 41}, "data.heldout: 41 asked for, 40 there"),
        ({"calibration": 41, "calibration_from": "own"}, "data.calibration: 41 asked for, 37 there"),
        ({"train": 5, "calibration": 6}, "data.calibration: 6 asked for, but data.train has only 5"),
    ],
)
def test_fewer_rows_than_asked_for(tmp_path: Path, counts: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", questions(40))
    with pytest.raises(RadistillError, match=message):
        draw(JsonlData(**{"path": path, "train": 20, "calibration": 2, "heldout": 3, **counts}), 0)


# datasets


@pytest.fixture
def table() -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(
        [{"question": f"{n}?", "answer": f"so\n#### {n}", "text": "-"} for n in range(12)]
    )


COUNTS = {"train": 6, "calibration": 2, "heldout": 4}


def test_keys_that_only_other_rows_have_are_not_there(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [called({"city": "Oslo"})]}]},
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [called({"code": 7})]}]},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    found = list(SOURCES["datasets"](HubData(id=str(tmp_path / "saved")), 0).examples)
    fields = [example.response_fields for example in sorted(found, key=lambda example: example.id)]
    assert fields == [None, {"tool_calls": [called({"city": "Oslo"})]}, {"tool_calls": [called({"code": 7})]}]


def test_a_saved_data_set(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(tmp_path / "saved")
    columns = {"prompt": "question", "response": "answer"}
    settings = HubData(id=str(tmp_path / "saved"), columns=columns, **COUNTS)
    result = draw(settings, 0)
    assert draw(settings, 0) == result
    for example in result.train + result.heldout:
        number = int(example.id.removeprefix("train-"))
        assert example.messages == ({"role": "user", "content": f"{number}?"},)
        assert example.response == f"so\n#### {number}"
        assert example.verifier is None  # only the columns that are named are read
    assert len({example.id for example in result.train + result.heldout}) == 10


def test_a_saved_data_set_with_splits(tmp_path: Path, table: Any) -> None:
    import datasets

    parts = datasets.DatasetDict(train=table.select(range(8)), test=table.select(range(8, 12)))
    parts.save_to_disk(tmp_path / "saved")
    settings = HubData(id=str(tmp_path / "saved"), heldout_split="test", columns={"prompt": "question"}, **COUNTS)
    assert {example.id for example in draw(settings, 0).heldout} == {f"test-{number}" for number in range(4)}
    with pytest.raises(RadistillError, match="has no split 'dev'; it has train, test"):
        draw(settings.model_copy(update={"split": "dev"}), 0)


def test_a_folder_of_data_files(tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train.parquet")
    settings = HubData(id=str(tmp_path / "files"), columns={"prompt": "question"}, **COUNTS)
    assert len(draw(settings, 0).train) == 6
    with pytest.raises(RadistillError, match="cannot be loaded: Unknown split"):
        draw(settings.model_copy(update={"split": "dev"}), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"prompt": "instruction"}}, "no column instruction; it has question, answer, text"),
        ({"columns": {"response": "answer"}}, "train, row .*: needs one of messages"),
        ({"id": "./nowhere"}, "data.id: ./nowhere is not a folder"),
    ],
)
def test_data_sets_that_do_not_fit(tmp_path: Path, table: Any, change: dict[str, Any], message: str) -> None:
    table.save_to_disk(tmp_path / "saved")
    with pytest.raises(RadistillError, match=message):
        draw(HubData(**{"id": str(tmp_path / "saved"), **COUNTS, **change}), 0)


@pytest.mark.parametrize("name", ["a[b]", "st*r", "what?", "a::b"])
def test_a_folder_whose_name_is_a_pattern(tmp_path: Path, table: Any, name: str) -> None:
    for folder in ("star", name):
        (tmp_path / folder).mkdir()
        table.to_parquet(tmp_path / folder / "train.parquet")
    with pytest.raises(RadistillError, match=r"data.id: .*: rename the folder or a parent"):
        draw(HubData(id=str(tmp_path / name), columns={"prompt": "question"}, **COUNTS), 0)


@pytest.mark.parametrize("name", ["100%25 {a,b} #1", "zwei Wörter"])
def test_a_folder_with_an_odd_name(tmp_path: Path, table: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).mkdir()
    table.to_parquet(tmp_path / name / "train.parquet")
    assert len(draw(HubData(id=str(tmp_path / name), columns={"prompt": "question"}, **COUNTS), 0).train) == 6


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RadistillError, match="cannot be loaded: "):
        draw(HubData(id=str(tmp_path)), 0)


# reasoning-gym


@pytest.fixture
def generator() -> Any:
    return pytest.importorskip("reasoning_gym")


def test_exercises_with_their_verifiers(generator: Any) -> None:
    result = draw(ReasoningGymData(train=20, calibration=4, heldout=10), 0)
    train, _, heldout = split(result)
    assert len(train) == 20
    assert len(heldout) == 10
    assert not train & heldout
    for example in result.train:
        assert example.verifier is not None
        assert example.verifier["kind"] == "reasoning-gym"
        assert example.verifier["task"] == "gsm_symbolic"
        assert float(example.verifier["answer"]) == example.verifier["metadata"]["answer_value"]
        json.dumps(example.verifier, allow_nan=False)


def test_exercises_repeat_with_the_seed_and_only_then(generator: Any) -> None:
    settings = ReasoningGymData(train=40, calibration=4, heldout=20)
    zero, again, one = draw(settings, 0), draw(settings, 0), draw(settings, 1)
    assert zero == again
    # reasoning-gym's own seeds 0 and 1 share all rows but one.
    assert not {example.prompt for example in zero.train} & {example.prompt for example in one.train}
    assert draw(settings.model_copy(update={"train": 400}), 0).heldout == zero.heldout


def test_tasks_in_equal_shares(generator: Any) -> None:
    settings = ReasoningGymData(tasks=["gsm_symbolic", "chain_sum"], train=10, calibration=1, heldout=4)
    tasks = [example.verifier["task"] for example in draw(settings, 0).train if example.verifier]
    assert tasks.count("gsm_symbolic") == tasks.count("chain_sum") == 5


def test_codeio_is_silent_and_leaves_the_random_state_alone(generator: Any, capfd: pytest.CaptureFixture[str]) -> None:
    import random

    random.seed(5)
    before = random.getstate()
    settings = ReasoningGymData(tasks={"codeio": {"difficulty": 3}}, train=60, calibration=1, heldout=10)
    result = draw(settings, 0)
    assert random.getstate() == before
    assert capfd.readouterr().out == ""
    for example in result.train:
        assert example.verifier is not None
        json.loads(example.verifier["answer"])
        assert example.verifier["metadata"]["input_data"] != {} or example.verifier["metadata"]["output_data"] != {}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"gsm_symbolik": {}}, "no task 'gsm_symbolik'; close names are gsm_symbolic"),
        ({"zzzzzz": {}}, "no task 'zzzzzz'; close names are "),
        ({"codeio": {"difficulty": 11}}, r"codeio does not take \{'difficulty': 11\}: difficulty must be in"),
        ({"codeio": {"colour": 1}}, r"codeio does not take \{'colour': 1\}"),
    ],
)
def test_unknown_tasks_and_options(generator: Any, tasks: dict[str, Any], message: str) -> None:
    with pytest.raises(RadistillError, match=message):
        draw(ReasoningGymData(tasks=tasks), 0)


def test_a_task_with_few_different_exercises(generator: Any) -> None:
    settings = ReasoningGymData(tasks={"count_bits": {"min_n": 1, "max_n": 5}}, train=50, calibration=1, heldout=2)
    with pytest.raises(RadistillError, match=r"data\.train: 50 asked for, 3 there"):
        draw(settings, 0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(RadistillError, match=r"pip install 'radistill\[generator\]'"):
        read_exercises(ReasoningGymData(), 0)
