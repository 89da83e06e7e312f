"""Where an output goes: it works, or one line says why not, before any work is done."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from radistill.cli import main
from radistill.errors import RadistillError
from radistill.files import output_place, write_json
from radistill.models import loading

COMMANDS: dict[str, tuple[str, ...]] = {
    "export gguf": ("export", "model", "--to", "gguf", "--out"),
    "export hf": ("export", "model", "--to", "hf", "--out"),
    "compare": ("compare", "one", "other", "--json"),
    "components": ("components", "model", "--json"),
    "savings": ("savings", "model", "model", "--out"),
    "drafter measure": ("drafter", "measure", "model", "model", "--out"),
    "evaluate": ("evaluate", "model", "--tasks", "recall", "--out"),
    "run": ("run", "recipe.yaml", "--out"),
}
PLACES: dict[str, Callable[[Path], str]] = {
    "parent is a file": lambda folder: str(folder / "file" / "x"),
    "proc": lambda folder: "/proc/x/y",
    "device": lambda folder: "/dev/full",
    "name too long": lambda folder: str(folder / "x" / ("n" * 256)),
    "loop": lambda folder: str(folder / "loop" / "x"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_takes_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    tiny.save("llama", tmp_path / "model")
    rows = '{"prompt": "1", "response": "2"}\n' * 9
    (tmp_path / "data.jsonl").write_text(rows)
    (tmp_path / "recipe.yaml").write_text(
        "model: model\ndata: {kind: jsonl, path: data.jsonl, train: 2, calibration: 2, heldout: 2}\n"
        "diagnose: {budget: 1, by: redundancy, selector: uniform}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("a model is loaded first"))
    monkeypatch.setattr(sys, "argv", ["radistill", *COMMANDS[command], PLACES[place](tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        main()
    printed = capsys.readouterr().err.strip().splitlines()
    assert leaving.value.code == 2
    assert len(printed) == 1
    assert "error: " in printed[0]
    assert str(PLACES[place](tmp_path)) in printed[0]
    assert sorted(tmp_path.rglob("*")) == before or command == "run"


def test_an_output_that_can_be_written(tmp_path: Path) -> None:
    assert output_place(tmp_path / "new" / "x") == tmp_path / "new" / "x"
    assert output_place(tmp_path / "new", folder=True) == tmp_path / "new"
    assert output_place(tmp_path / ("n" * 255)).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "x")
    assert output_place(tmp_path / "link") == tmp_path / "elsewhere" / "x"
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RadistillError, match="folder: is a folder; name a file"):
        output_place(tmp_path / "folder")
    with pytest.raises(RadistillError, match="file: is a file; name a folder"):
        output_place(tmp_path / "file", folder=True)
    with pytest.raises(RadistillError, match="cannot be written"):
        output_place(f"{tmp_path}/a\0b")


def test_a_file_that_fails_later_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No check sees everything: here a run folder's results cannot be written, because a folder is in their place."""
    tiny.save("llama", tmp_path / "model")
    path = tmp_path / "figures.json"
    write_json(path, {})

    def load(*_: object, **__: object) -> None:
        path.unlink()
        path.mkdir()
        (path / "x").touch()
        path.read_text()

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(sys, "argv", ["radistill", "components", str(tmp_path / "model"), "--json", str(path)])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert f"error: {path}: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [True, False])
def test_a_machine_whose_disks_are_read_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], memory: bool
) -> None:
    """Libraries ask for a folder for temporary files when they are imported."""

    def default() -> str:
        if memory and os.environ.get("TMPDIR") == "/dev/shm":
            return "/dev/shm"
        raise FileNotFoundError

    monkeypatch.setenv("TMPDIR", "/none")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", default)
    monkeypatch.setattr(sys, "argv", ["radistill", "--version"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0
    assert capsys.readouterr().out.split()[0] == "radistill"
    assert tempfile.gettempdir() == ("/dev/shm" if memory else "/tmp")
