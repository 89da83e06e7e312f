"""The run folder: one process at a time, and only finished steps count."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from radistill.errors import RadistillError
from radistill.files import atomic_folder, move_folder, read_json, remove_leftovers
from radistill.locks import locked
from radistill.runs.folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from radistill.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    for _ in range(2):  # being refused does not take the owner's name away
        with pytest.raises(RadistillError) as caught, locked(tmp_path):
            pytest.fail("the folder was given to two processes")
        assert str(caught.value) == (
            f"{tmp_path}: another run (process {holder.pid}) is using this folder; "
            "wait for it to end or choose another --out"
        )
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run").is_dir()


def test_no_lock_is_left_behind_and_none_is_held_twice(tmp_path: Path) -> None:
    """Who opens the file right before its holder removes it must not believe that it has the folder."""
    inside, twice, held = [0], [0], [0] * 8

    def hold(number: int) -> None:
        while held[number] < 40:
            try:
                with locked(tmp_path):
                    inside[0] += 1
                    twice[0] += inside[0] > 1
                    held[number] += 1
                    time.sleep(0)
                    inside[0] -= 1
            except RadistillError:
                time.sleep(0)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert twice == [0]
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(RadistillError, match="is a file; choose a folder with --out"),
        locked(tmp_path / "run"),
    ):
        pass


def test_a_step_is_current_with_the_same_inputs_and_all_outputs(tmp_path: Path) -> None:
    folder, output = RunFolder(tmp_path), tmp_path / "plan.json"
    inputs = {"budget": 2, "seed": 0}
    assert not folder.is_current("diagnose", inputs, [])
    with folder.step("diagnose", inputs, [output], seed=0):
        output.write_text("{}")
    assert folder.is_current("diagnose", {"seed": 0, "budget": 2}, [output])
    assert not folder.is_current("diagnose", {"seed": 0, "budget": 3}, [output])
    assert not folder.is_current("convert", inputs, [output])
    output.write_text("")  # cut short
    assert not folder.is_current("diagnose", inputs, [output])
    output.unlink()
    assert not folder.is_current("diagnose", inputs, [output])


def test_a_folder_is_as_it_was_left_if_each_of_its_files_is(tmp_path: Path) -> None:
    folder, output = RunFolder(tmp_path), tmp_path / "student"
    (output / "parts").mkdir(parents=True)
    files = [output / "config.json", output / "parts" / "weights"]
    with folder.step("distill", {}, [output], seed=0):
        for file in files:
            file.write_text("long enough")
    (output / "README.md").write_text("mine")
    assert folder.is_current("distill", {}, [output])
    output.rename(tmp_path / "elsewhere")
    assert folder.is_current("distill", {}, [tmp_path / "elsewhere"])
    (tmp_path / "elsewhere").rename(output)
    for file in files:
        whole = file.read_text()
        file.write_text(whole[:3])
        assert not folder.is_current("distill", {}, [output])
        file.unlink()
        assert not folder.is_current("distill", {}, [output])
        file.write_text(whole)
    assert folder.is_current("distill", {}, [output])
    with folder.step("empty", {}, [tmp_path / "empty"], seed=0):
        (tmp_path / "empty").mkdir()
    assert not folder.is_current("empty", {}, [tmp_path / "empty"])


def test_another_process_sees_what_was_finished(tmp_path: Path) -> None:
    with RunFolder(tmp_path).step("data", ["inputs"], seed=3):
        pass
    again = RunFolder(tmp_path)
    assert again.is_current("data", ["inputs"], [])
    with again.step("diagnose", [], seed=3):
        pass
    record = read_json(tmp_path / "run.json")
    assert list(record["stages"]) == ["data", "diagnose"]
    assert record["seed"] == 3
    assert set(record) == {"versions", "machine", "seed", "stages"}
    assert set(record["stages"]["data"]) == {"inputs", "outputs", "recipe", "versions", "seconds", "finished"}
    assert record["stages"]["data"]["versions"] == record["versions"]
    assert "torch" in record["versions"]


def test_a_step_that_raises_is_not_recorded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.step("data", [], seed=0):
        raise ZeroDivisionError
    assert not folder.is_current("data", [], [])
    assert not RunFolder(tmp_path).is_current("data", [], [])


def test_a_step_that_was_done_counts_as_undone_while_it_runs_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.step("data", ["old"], seed=0):
        pass
    with folder.step("data", ["new"], seed=0) as replacing:
        assert RunFolder(tmp_path).is_current("data", ["old"], [])  # a kill, or a refusal, leaves what there was
        replacing()
        # A kill at this point must not leave a record of the old step beside half of the new one's files.
        seen = RunFolder(tmp_path)
        assert seen.steps == {}
    for inputs in (["old"], ["new"]):
        assert not seen.is_current("data", inputs, [])
    assert folder.is_current("data", ["new"], [])


def test_other_steps_survive_one_that_fails(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.step("data", [], seed=0):
        pass
    with pytest.raises(ValueError, match="no"), folder.step("diagnose", [], seed=0):
        raise ValueError("no")
    assert RunFolder(tmp_path).is_current("data", [], [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": 3}', '{"versions": {}}', "null"])
def test_a_broken_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RadistillError, match=r"run\.json: not (valid JSON|a record of a run)"):
        RunFolder(tmp_path).is_current("data", [], [])


def test_a_folder_is_old_or_new_or_none_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = tmp_path / "student", []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and str(tmp_path) in str(arguments[0]):
            seen.append(sorted((path.name, path.read_text()) for path in target.iterdir()) if target.exists() else None)

    for content in ("old", "new"):
        if content == "new":
            sys.addaudithook(look)
        with atomic_folder(target) as folder:
            for name in ("config.json", "weights"):
                (folder / name).write_text(content)
    whole = [[("config.json", content), ("weights", content)] for content in ("old", "new")]
    assert seen[0] == whole[0]
    assert seen[-1] == whole[1]
    assert all(state in (*whole, None) for state in seen)
    assert [state for state in seen if state is None] == [None]  # only when the new one is about to be renamed
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        move_folder(tmp_path / "missing", target)
    assert (target / "weights").read_text() == "new"
    assert os.listdir(tmp_path) == ["student"]


def test_what_killed_processes_have_left_is_removed(tmp_path: Path) -> None:
    """Temporary files and folders of the dead, wherever they lie; not those of the living, nor what looks alike."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = [tmp_path / f".start.{gone.pid}.tmp", tmp_path / "arms" / f".ab12.new.{gone.pid}.tmp"]
    kept = [tmp_path / f".student.{os.getpid()}.tmp", tmp_path / "a.tmp", tmp_path / ".cache.tmp"]
    for path in (*dead, *kept):
        path.mkdir(parents=True)
        (path / "file").write_text("")
    files = [tmp_path / f".plan.{gone.pid}.tmp", tmp_path / "arms" / f".0123.old.{gone.pid}.tmp"]
    for path in files:
        path.write_text("")
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in (*dead, *files))
    assert all((path / "file").exists() for path in kept)
