"""The data stage as a whole: what it writes, how it goes on after a kill, what it leaves out."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fake_server import Fake, serving, vllm_stands_in
from radistill.data import responses
from radistill.data.examples import Example
from radistill.data.prepare import load_data, prepare
from radistill.data.records import SPLITS, DataSplits, Record
from radistill.data.settings import HubData, JsonlData, ReasoningGymData
from radistill.errors import RadistillError
from radistill.models import generation
from radistill.models.generation import generate
from radistill.models.loading import Model, load_without_weights
from radistill.models.sequences import Document, hash_documents


def rows_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return rows_file(tmp_path / "rows.jsonl", [{"prompt": f"{'long ' * (n % 5)}question {n}?"} for n in range(30)])


def settings_for(path: Path, **changes: Any) -> JsonlData:
    fields = {"path": path, "train": 8, "calibration": 3, "heldout": 4}
    return JsonlData(**{**fields, "responses": {"max_new_tokens": 6, "batch_size": 3}, **changes})


def test_the_teacher_writes_what_is_missing(questions: Path, tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    splits = prepare(teacher, settings_for(questions), seed=0, folder=tmp_path / "data")
    assert [len(splits.records(split)) for split in SPLITS] == [8, 3, 4]
    assert splits.calibration == splits.train[:3]
    for record in splits.train + splits.heldout:
        document = record.document
        prompt = document.tokens[: document.response_start]
        response = list(document.tokens[document.response_start :])
        # The very tokens that the model produced, alone as in its batch; not its text tokenised again.
        assert response == generate(teacher, [prompt], max_new_tokens=6)[0]
        assert record.example.response == teacher.tokenizer.decode(response, skip_special_tokens=True)
        assert record.finished == (response[-1] in {259})
        assert record.finished or len(response) == 6


def test_a_server_writes_in_its_place(questions: Path, tmp_path: Path) -> None:
    """A teacher without a weight makes the same data; what was written is not asked for again."""
    expected = prepare(tiny.model("llama"), settings_for(questions), seed=0, folder=None)
    without = tiny.model("llama")
    without.network.to("meta")
    with serving(Fake()) as fake:
        asked = {"max_new_tokens": 6, "server": fake.address}
        for _ in range(2):
            found = prepare(without, settings_for(questions, responses=asked), seed=0, folder=tmp_path)
            assert found == expected
        assert fake.texts == 12


def test_vllm_is_started_once_for_it(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = vllm_stands_in(monkeypatch)
    teacher = load_without_weights(tiny.save("llama", tmp_path / "model"))
    settings = settings_for(questions, responses={"max_new_tokens": 6, "server": "vllm"})
    assert prepare(teacher, settings, seed=0, folder=None) == prepare(
        tiny.model("llama"), settings_for(questions), seed=0, folder=None
    )
    assert [(fake.texts, fake.context) for fake in started] == [(12, 512 + 6)]


def test_files(questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    splits = prepare(tiny.model("llama"), settings_for(questions), seed=0, folder=folder)
    assert DataSplits.load(folder) == splits
    for split in SPLITS:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for row, record in zip(rows, splits.records(split), strict=True):
            assert set(row) == {"id", "messages", "response", "tokens", "response_start", "finished", "verifier"}
            assert tuple(row["tokens"]) == record.document.tokens
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_record_survives_its_row(tmp_path: Path) -> None:
    records = [
        Record(Example("a", text="x\u2028 ü\x85\r\n"), Document("a", (1, 2), 1)),
        Record(
            Example("b", messages=({"role": "user", "content": "?"},), response="", verifier={"kind": "answer"}),
            Document("b", (1, 2, 3), 2),
            finished=False,
        ),
    ]
    for record in records:
        assert Record.from_row(json.loads(json.dumps(record.to_row()))) == record
    splits = DataSplits(records, records[:1], [])
    splits.save(tmp_path)
    assert DataSplits.load(tmp_path) == splits


def test_hashes_follow_the_tokens() -> None:
    document = Document("a", (1, 2, 3), 1)
    base = hash_documents([document])
    for other in (Document("a", (1, 2, 4), 1), Document("a", (1, 2, 3), 2), Document("a", (12, 3), 1)):
        assert hash_documents([other]) != base
    assert hash_documents([Document("b", (1, 2, 3), 1)]) == base
    assert hash_documents([document, document]) != base


@pytest.mark.parametrize("content", [None, "not json\n", '{"id": "a"}\n', '{"id": "a", "text": "b", "tokens": [1]}\n'])
def test_broken_files(tmp_path: Path, content: str | None) -> None:
    DataSplits([], [], []).save(tmp_path)
    if content is None:
        (tmp_path / "heldout.jsonl").unlink()
    else:
        (tmp_path / "heldout.jsonl").write_text(content)
    with pytest.raises(RadistillError, match=r"heldout.jsonl(: no such file|, line 1: ).*prepares it anew"):
        DataSplits.load(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    DataSplits([], [], []).save(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b'{"id": "\xff')
    with pytest.raises(RadistillError, match=r"train.jsonl, line 1: not UTF-8 text"):
        DataSplits.load(tmp_path)


ANSWERED = [{"prompt": f"{n}?", "response": f"It is {n}."} if n % 2 else {"prompt": f"{n}?"} for n in range(20)]


@pytest.mark.parametrize(("source", "own"), [("auto", True), ("teacher", False)])
def test_the_datas_own_responses(tmp_path: Path, source: str, own: bool) -> None:
    path = rows_file(tmp_path / "rows.jsonl", ANSWERED)
    options = {"source": source, "max_new_tokens": 4}
    splits = prepare(tiny.model("llama"), settings_for(path, responses=options), seed=0, folder=None)
    kept = [record for record in splits.train if (record.example.response or "").startswith("It is ")]
    assert len(kept) == (sum(int(record.example.id.split("-")[1]) % 2 == 0 for record in splits.train) if own else 0)
    for record in kept:
        tokens = record.document.tokens[record.document.response_start :]
        assert tiny.tokenizer().decode(tokens) == f"{record.example.response}<|im_end|>"
        assert record.finished


def test_responses_that_are_not_there(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", ANSWERED)
    with pytest.raises(
        RadistillError, match=r"rows-\d+: has no response; set data.responses.source to auto or teacher"
    ):
        prepare(tiny.model("llama"), settings_for(path, responses={"source": "data"}), seed=0, folder=None)


def test_texts(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    teacher.tokenizer.chat_template = None
    path = rows_file(tmp_path / "rows.jsonl", [{"text": f"Once upon a time, {n}."} for n in range(15)])
    splits = prepare(teacher, settings_for(path), seed=0, folder=tmp_path)
    assert {record.document.response_start for record in splits.heldout} == {1}
    assert set(splits.train[0].to_row()) == {"id", "text", "tokens", "response_start", "finished", "verifier"}
    with pytest.raises(RadistillError, match="is a text, to which the teacher writes no response"):
        prepare(teacher, settings_for(path, responses={"source": "teacher"}), seed=0, folder=None)


def test_loss_on_all_is_a_matter_of_training_alone(questions: Path) -> None:
    teacher = tiny.model("llama")
    usual = prepare(teacher, settings_for(questions), seed=0, folder=None)
    everything = prepare(teacher, settings_for(questions, loss_on="all"), seed=0, folder=None)
    assert {document.response_start for document in everything.documents("train")} == {1}
    assert everything.calibration == usual.calibration
    assert everything.heldout == usual.heldout
    assert [d.tokens for d in everything.documents("train")] == [d.tokens for d in usual.documents("train")]


def test_long_documents_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"text": "x" * (10 * n + 1)} for n in range(12)])
    own = rows_file(tmp_path / "own.jsonl", [{"text": "fine"}])
    settings = settings_for(path, heldout_path=own, heldout=1, train=12, calibration=12, max_length=51)
    splits = prepare(tiny.model("llama"), settings, seed=0, folder=None)
    # 1 token gives nothing to learn; 11, 21, 31, 41 and 51 are within the limit.
    assert sorted(len(document.tokens) for document in splits.documents("train")) == [11, 21, 31, 41, 51]
    assert "7 of 12 train examples left out, longer than 51 tokens or of one token only" in capsys.readouterr().err
    assert splits.calibration == splits.train
    with pytest.raises(RadistillError, match=r"data\.max_length: none of the 12 train examples"):
        prepare(tiny.model("llama"), settings.model_copy(update={"max_length": 5}), seed=0, folder=None)


def test_prompts_without_room_for_a_response_are_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "x" * (200 if n % 2 else 3) + str(n)} for n in range(12)]
    path = rows_file(tmp_path / "rows.jsonl", rows)
    asked = []

    def recorded(model: Model, prompts: list[list[int]], **arguments: Any) -> list[list[int]]:
        asked.extend(prompts)
        return generate(model, prompts, **arguments)

    monkeypatch.setattr(responses, "generate", recorded)
    splits = prepare(tiny.model("llama"), settings_for(path, max_length=100), seed=0, folder=None)
    assert len(splits.train) < 8
    assert len(asked) == len(splits.train) + len(splits.heldout)
    assert max(map(len, asked)) < 100


def test_one_prompt_beyond_the_context_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"What is {n}?"} for n in range(11)]
    rows[3] = {"prompt": "x" * 600}
    rows[7] = {"prompt": "y" * 600, "response": "Much."}
    settings = settings_for(
        rows_file(tmp_path / "rows.jsonl", rows), train=9, calibration=1, heldout=2, max_length=4096
    )
    splits = prepare(tiny.model("llama"), settings, seed=0, folder=None)
    assert len(splits.train) + len(splits.heldout) == 9
    assert "left out, longer than 512 tokens" in capsys.readouterr().err


def test_prompts_that_are_all_beyond_the_context(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"prompt": "x" * 600 + str(n)} for n in range(12)])
    with pytest.raises(RadistillError, match=r"none of the \d heldout examples has between 2 and"):
        prepare(tiny.model("llama"), settings_for(path), seed=0, folder=None)


def test_responses_that_the_template_shortens_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tiny.model("llama")
    teacher.tokenizer.chat_template = str(teacher.tokenizer.chat_template).replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    rows = [{"prompt": str(n), "response": "<think>Hm.</think>Yes." if n % 2 else "No."} for n in range(8)]
    settings = settings_for(rows_file(tmp_path / "rows.jsonl", rows), train=4, calibration=1, heldout=4)
    prepare(teacher, settings, seed=0, folder=None)
    counts = re.findall(r"leaves out a part of (\d) of 4 (heldout|train) responses", capsys.readouterr().err)
    assert sum(int(count) for count, _ in counts) == 4


def test_the_teacher_stops_at_the_end_of_a_turn_though_its_config_does_not(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    teacher.tokenizer.eos_token = tiny.PAD
    teacher.network.generation_config.eos_token_id = 256
    says = torch.zeros(tiny.VOCAB_SIZE)
    says[259] = 1e4
    teacher.network.get_output_embeddings().bias = torch.nn.Parameter(says)
    settings = settings_for(rows_file(tmp_path / "rows.jsonl", [{"prompt": str(n)} for n in range(12)]))
    for record in prepare(teacher, settings, seed=0, folder=None).train:
        assert record.document.tokens[record.document.response_start :] == (259,)
        assert record.finished


class Killed(Exception):
    pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_killed_stage_goes_on_and_ends_the_same(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, batches: int
) -> None:
    teacher = tiny.model("llama")
    options = {"max_new_tokens": 5, "temperature": temperature, "batch_size": 3}
    settings = settings_for(questions, responses=options)
    whole = prepare(teacher, settings, seed=7, folder=tmp_path / "whole")
    run, sizes = generation._run, []

    def dying(prompts: list[list[int]], *arguments: Any) -> list[list[int]]:
        if len(sizes) == batches:
            raise Killed
        sizes.append(len(prompts))
        return run(prompts, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_run", dying)
        with pytest.raises(Killed):
            prepare(teacher, settings, seed=7, folder=tmp_path / "killed")
    again = []
    monkeypatch.setattr(generation, "_run", lambda prompts, *a: again.append(len(prompts)) or run(prompts, *a))
    assert prepare(teacher, settings, seed=7, folder=tmp_path / "killed") == whole
    assert sum(sizes) + sum(again) == 12
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_prepare
test_prepare.prepare_in(Path(sys.argv[2]))
"""


def prepare_in(folder: Path) -> None:
    torch.set_num_threads(1)
    options = {"max_new_tokens": 16, "temperature": 1.0, "batch_size": 1}
    settings = settings_for(folder / "rows.jsonl", train=20, responses=options)
    prepare(tiny.model("llama"), settings, seed=1, folder=folder / "data")


@pytest.mark.slow
def test_kill_minus_9(questions: Path, tmp_path: Path) -> None:
    """A process is killed while it writes; what it leaves is completed to what it would have left."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
        shutil.copy(questions, folder)
    here, cache = Path(__file__).parent, killed / "data" / "responses.jsonl"
    paths = os.pathsep.join([*sys.path, str(here)])
    arguments = [sys.executable, "-c", SCRIPT, str(here), str(killed)]
    process = subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (cache.exists() and cache.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = cache.read_bytes()

    threads = torch.get_num_threads()
    try:
        prepare_in(whole)
        assert before.count(b'"key"') < (whole / "data" / "responses.jsonl").read_bytes().count(b'"key"')
        prepare_in(killed)
    finally:
        torch.set_num_threads(threads)
    assert cache.read_bytes().startswith(before)
    for split in SPLITS:
        name = Path("data") / f"{split}.jsonl"
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_sampled_responses_follow_the_seed(questions: Path) -> None:
    teacher = tiny.model("llama")
    settings = settings_for(questions, responses={"max_new_tokens": 5, "temperature": 1.0})
    one = prepare(teacher, settings, seed=0, folder=None)
    assert prepare(teacher, settings, seed=0, folder=None) == one
    assert prepare(teacher, settings, seed=1, folder=None) != one


def test_generated_exercises_are_kept_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some generators give other exercises in another process; the responses in the cache belong to the first."""
    pytest.importorskip("reasoning_gym")
    teacher = tiny.model("llama", max_position_embeddings=2048)
    settings = ReasoningGymData(train=3, calibration=1, heldout=2, responses={"max_new_tokens": 3})
    first = prepare(teacher, settings, seed=0, folder=tmp_path)
    assert first.train[0].example.verifier
    draws = []
    module = importlib.import_module(prepare.__module__)
    draw = vars(module)["draw"]
    monkeypatch.setattr(module, "draw", lambda *a: draws.append(a) or draw(*a))
    assert prepare(teacher, settings, seed=0, folder=tmp_path) == first
    assert draws == []
    assert prepare(teacher, settings, seed=1, folder=tmp_path) != first
    assert len(draws) == 1


def test_a_data_set_of_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"q": f"{n}?", "a": str(n)} for n in range(9)]).save_to_disk(tmp_path / "saved")
    settings = HubData(
        id=str(tmp_path / "saved"), columns={"prompt": "q", "response": "a"}, train=5, calibration=1, heldout=2
    )
    splits = prepare(tiny.model("llama"), settings, seed=0, folder=tmp_path / "data")
    assert DataSplits.load(tmp_path / "data") == splits
    assert all(record.finished for record in splits.train)


def test_load_data(questions: Path) -> None:
    teacher = tiny.model("llama", max_position_embeddings=2048)
    documents = load_data(str(questions), teacher, count=5, max_new_tokens=3)
    assert len(documents) == 5
    assert all(1 <= len(d.tokens) - d.response_start <= 3 for d in documents)
    pytest.importorskip("reasoning_gym")
    documents = load_data("reasoning-gym:gsm_symbolic,chain_sum", teacher, count=4, max_new_tokens=2)
    assert {document.id.split("-")[0] for document in documents} == {"gsm_symbolic", "chain_sum"}
    assert load_data("reasoning-gym:gsm_symbolic", teacher, count=2, max_new_tokens=2, seed=1) != documents[:2]


def test_load_data_rewritten(tmp_path: Path) -> None:
    teacher = tiny.model("llama")
    path = rows_file(tmp_path / "rows.jsonl", [{"prompt": "why?", "response": "So."}])
    settings: dict[str, Any] = {"count": 1, "max_new_tokens": 6}
    [given] = load_data(str(path), teacher, **settings)
    prompt = given.tokens[: given.response_start]
    [written] = load_data(str(path), teacher, rewrite=True, **settings)
    [expected] = generate(teacher, [prompt], max_new_tokens=6)
    assert written.tokens == (*prompt, *expected) != given.tokens
    sampled = [load_data(str(path), teacher, rewrite=True, temperature=2.0, seed=s, **settings) for s in (0, 1)]
    assert sampled[0] != sampled[1]


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [
        ("nothing", 1, "'nothing' is not a source: the path of a .jsonl file, a folder, the name of a data set"),
        ("reasoning-gym:", 1, "is not a source"),
        ("missing.jsonl", 1, "missing.jsonl: no such file"),
        ("rows.jsonl", 31, "count: 31 asked for, 30 there"),
        ("rows.jsonl", 0, "count is 0, but must be at least 1"),
    ],
)
def test_load_data_errors(
    questions: Path, monkeypatch: pytest.MonkeyPatch, source: str, count: int, message: str
) -> None:
    monkeypatch.chdir(questions.parent)
    with pytest.raises(RadistillError, match=message):
        load_data(source, tiny.model("llama"), count)


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_writes_sense(smollm2: Model, tmp_path: Path) -> None:
    rows = [{"prompt": "What is the capital of France? Answer with one word."}, {"prompt": "Say hello."}]
    settings = JsonlData(
        path=rows_file(tmp_path / "rows.jsonl", rows),
        train=1,
        calibration=1,
        heldout=1,
        responses={"max_new_tokens": 8},
    )
    splits = prepare(smollm2, settings, seed=0, folder=None)
    written = " ".join(record.example.response or "" for record in splits.train + splits.heldout)
    assert "Paris" in written
    assert "Hello" in written
