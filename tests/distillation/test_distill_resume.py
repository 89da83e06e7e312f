"""A run that is killed, interrupted or refused a disk ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_case
import pytest
import torch
from distill_case import HELDOUT, OWN, RESUMABLE, TRAIN, lasting, models, run, steps_kept, weights
from torch import Tensor

import tiny
from radistill.distillation import checkpoints, loop
from radistill.distillation.checkpoints import Checkpoints, remove_checkpoints
from radistill.distillation.checks import Job
from radistill.distillation.distill import training_key
from radistill.distillation.losses.distributions import ForwardKL
from radistill.distillation.settings import DistillSettings
from radistill.errors import RadistillError

THREE = RESUMABLE.model_copy(update={"steps": 3})
SIX = RESUMABLE.model_copy(update={"steps": 6})
Outcome = tuple[dict[str, Any], dict[str, Tensor]]


def outcome(folder: Path | None, settings: DistillSettings = RESUMABLE) -> Outcome:
    teacher, student = models()
    return lasting(run(student, teacher, settings, folder=folder)), weights(student)


@pytest.fixture(scope="module")
def uninterrupted() -> Outcome:
    return outcome(None, SIX)


@pytest.fixture(scope="module")
def never_killed() -> Outcome:
    return outcome(None)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert found[0] == expected[0]
    different = [name for name, tensor in expected[1].items() if not torch.equal(tensor, found[1][name])]
    assert not different


def complete(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in folder.glob("checkpoints/*/*/COMPLETE"))


KILLED = {  # where: (checkpoints that are left, those of them that are complete)
    "batch:1": ([], []),
    "batch:15": ([5, 6, 7], [5, 6, 7]),  # in the eighth step, between its two batches; 5 was measured
    "half-written:6": ([4, 5, 6], [4, 5]),
    "unmarked:4": ([2, 3, 4], [2, 3]),
    "half-removed:3": ([3, 4, 5], [4, 5]),  # when the third checkpoint goes
    "outside:4,outside:8": None,  # depends on the moment
}
OWN_KILLED = (
    "own:16,own:4"  # when the student writes some batches: in the eighth step, and in the second one after that
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, distill_case.__file__, str(folder), *KILLED, OWN_KILLED]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("where", KILLED)
@pytest.mark.slow
def test_killed_anywhere_it_goes_on_bit_for_bit(where: str, killed: Path, never_killed: Outcome) -> None:
    folder, left = killed / where, KILLED[where]
    if left is not None:
        assert (steps_kept(folder), complete(folder)) == left
    assert_same(outcome(folder), never_killed)
    assert complete(folder) == steps_kept(folder) == [10, 11, 12]  # 10 was the best when 11 was written


@pytest.mark.slow
def test_the_student_writes_the_same_after_a_kill(killed: Path) -> None:
    expected = outcome(None, OWN)
    assert steps_kept(killed / OWN_KILLED)[-1] == 8
    assert_same(outcome(killed / OWN_KILLED, OWN), expected)
    shares = [row["on_policy"] for row in expected[0]["curve"]]
    assert 0 < sum(shares[:7]) < sum(shares) < 12  # there was something to write before and after, and not only that


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same(outcome(tmp_path, SIX), uninterrupted)
    monkeypatch.setattr(loop, "chunked_sum", None)
    assert_same(outcome(tmp_path, SIX), uninterrupted)
    teacher, student = models()
    train, heldout = ([replace(document, id=f"./{document.id}") for document in part] for part in (TRAIN, HELDOUT))
    run(student, teacher, SIX, folder=tmp_path, train=train, heldout=heldout)  # whatever the documents are called
    remove_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def interrupt_in_batch_seven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original, calls = loop.chunked_sum, []

    def interrupting(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(loop, "chunked_sum", interrupting)
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("interrupt_in_batch_seven")
def test_ctrl_c_finishes_the_step_and_saves_it(
    tmp_path: Path, uninterrupted: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    rarely = SIX.model_copy(update={"save_seconds": 10_000})
    teacher, student = models()
    with pytest.raises(KeyboardInterrupt):
        run(student, teacher, rarely, folder=tmp_path)
    assert complete(tmp_path) == [4]
    assert "stopped after step 4 of 6" in capsys.readouterr().err
    assert_same(outcome(tmp_path, SIX), uninterrupted)


def test_ctrl_c_while_the_last_step_is_measured_stops_too(
    tmp_path: Path, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Training._measure

    def interrupting(training: loop.Training, report: Any) -> None:
        original(training, report)
        if training.log.step == SIX.steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Training, "_measure", interrupting)
    teacher, student = models()
    with pytest.raises(KeyboardInterrupt):
        run(student, teacher, SIX, folder=tmp_path)
    monkeypatch.undo()
    assert_same(outcome(tmp_path, SIX), uninterrupted)


@pytest.mark.usefixtures("interrupt_in_batch_seven")
def test_ctrl_c_without_a_folder_stops_too() -> None:
    teacher, student = models()
    with pytest.raises(KeyboardInterrupt):
        run(student, teacher, SIX)
    assert all(parameter.requires_grad for parameter in student.network.parameters())


def test_dropout_goes_on_with_the_same_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping(folder: Path | None, share: float = 0.5) -> Outcome:
        teacher, student = models("random")
        for module in student.network.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = share
        state = torch.get_rng_state()
        result = lasting(run(student, teacher, THREE, folder=folder))
        assert torch.equal(torch.get_rng_state(), state)
        return result, weights(student)

    expected = dropping(None)
    assert expected[0]["curve"] != dropping(None, share=0.0)[0]["curve"]
    original, calls = loop.chunked_sum, []

    def dying(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError
        return original(*arguments)

    monkeypatch.setattr(loop, "chunked_sum", dying)
    with pytest.raises(MemoryError):
        dropping(tmp_path)
    assert_same(dropping(tmp_path), expected)


def test_a_checkpoint_of_another_start_is_not_used(tmp_path: Path) -> None:
    short = RESUMABLE.model_copy(update={"steps": 2})

    def other_start(folder: Path | None) -> Outcome:
        teacher, student = models()
        with torch.no_grad():
            next(student.network.parameters()).mul_(1.01)
        return lasting(run(student, teacher, short, folder=folder)), weights(student)

    teacher, student = models()
    run(student, teacher, short, folder=tmp_path)
    assert_same(other_start(tmp_path), other_start(None))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_whatever_changes_the_result_makes_it_another_run() -> None:
    teacher, student = models()
    other = tiny.model("llama", seed=1)
    base = (student, teacher, TRAIN, HELDOUT, RESUMABLE, ["a", "b"], 0)
    changes = {
        0: other,
        1: other,
        2: TRAIN[:-1],
        3: [replace(HELDOUT[0], response_start=HELDOUT[0].response_start - 1), *HELDOUT[1:]],
        4: RESUMABLE.model_copy(update={"loss": ForwardKL(temperature=2.0)}),
        5: ["a"],
        6: 1,
    }
    keys = [training_key(Job(*base[:place], changed, *base[place + 1 :])) for place, changed in changes.items()]
    assert len({training_key(Job(*base)), *keys}) == 1 + len(keys)
    respelt = [[replace(document, id=f"./{document.id}") for document in part] for part in (TRAIN, HELDOUT)]
    assert training_key(Job(*base[:2], *respelt, *base[4:])) == training_key(Job(*base))
    reordered = [replace(document, id=str(place)) for place, document in zip(range(99, 0, -1), TRAIN, strict=False)]
    assert training_key(Job(*base[:2], reordered, *base[3:])) != training_key(Job(*base))  # other batches
    patient = RESUMABLE.model_copy(update={"save_seconds": 60, "report_to": "none", "teacher_device": "cpu"})
    assert training_key(Job(*base[:4], patient, ["b", "a"])) == training_key(Job(*base))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("writer\nfailed")])
def test_a_full_disk_costs_only_the_steps_since_the_last_checkpoint(
    error: Exception, tmp_path: Path, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = checkpoints.save_file, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise error
        original(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    teacher, student = models()
    with pytest.raises(RadistillError, match="checkpoint of step 5 cannot be written") as refused:
        run(student, teacher, SIX, folder=tmp_path)
    assert "\n" not in str(refused.value)
    assert complete(tmp_path) == [3, 4]
    assert_same(outcome(tmp_path, SIX), uninterrupted)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("three")
    return folder, outcome(folder, THREE)


@pytest.mark.parametrize("damage", ["removed", "changed", "never there"])
@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.pt", "log.json", "random-0.pt", "COMPLETE"])
def test_a_damaged_checkpoint_is_not_gone_on_from(
    name: str,
    damage: str,
    three_steps: tuple[Path, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(three_steps[0], tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob(f"checkpoints/*/checkpoint-3/{name}")
    if damage != "changed":
        path.unlink()
        if damage == "never there":  # as far as its marker says
            marker = path.with_name("COMPLETE")
            hashes = json.loads(marker.read_text()) if marker.exists() else {}
            hashes.pop(name, None)
            marker.write_text(json.dumps(hashes))
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    original, calls = loop.chunked_sum, []
    monkeypatch.setattr(loop, "chunked_sum", lambda *arguments: (calls.append(1), original(*arguments))[1])
    assert_same(outcome(tmp_path, THREE), three_steps[1])
    assert len(calls) == 2  # the batches of the third step
    assert complete(tmp_path) == [2, 3]
    assert ("is damaged" in capsys.readouterr().err) == ((name, damage) != ("COMPLETE", "removed"))


def test_without_the_weights_to_keep_a_checkpoint_is_of_no_use(tmp_path: Path) -> None:
    """The best step is the first, and its weights have gone."""
    settings = THREE.model_copy(update={"steps": 4, "eval_steps": 1, "new_block_learning_rate": 0.3})
    expected = outcome(tmp_path, settings)
    assert (expected[0]["kept_step"], complete(tmp_path)) == (1, [1, 3, 4])
    (best,) = tmp_path.glob("checkpoints/*/checkpoint-1/trainable.safetensors")
    best.write_bytes(b"")
    assert_same(outcome(tmp_path, settings), expected)


def test_checkpoints_are_sorted_by_step_not_by_name(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    for step in (9, 10, 100):
        kept.save(step, 0, {}, {}, {}, torch.device("cpu"))
    latest = kept.latest()
    assert latest is not None
    assert latest.name == "checkpoint-100"
    assert steps_kept(tmp_path) == [10, 100]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RadistillError, match="cannot be written"):
        Checkpoints(tmp_path / "file", "key")


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    """Only what training changes, and no pickled code."""
    from safetensors.torch import load_file

    frozen = RESUMABLE.model_copy(update={"steps": 1, "other_learning_rate": 0.0})
    teacher, student = models()
    run(student, teacher, frozen, folder=tmp_path)
    (checkpoint,) = tmp_path.glob("checkpoints/*/checkpoint-1")
    assert set(load_file(checkpoint / "trainable.safetensors")) == distill_case.new_parameters(student, [1, 2])
    assert not list(checkpoint.glob("*.bin"))
    for path in checkpoint.glob("*.pt"):
        torch.load(path, weights_only=True)
    log = json.loads((checkpoint / "log.json").read_text())
    assert [row["step"] for row in log["evaluations"]] == [0, 1]
    assert [row["step"] for row in log["curve"]] == [1]
