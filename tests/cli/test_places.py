"""Places that a command may run in: a read-only disk, a full one, output that nobody reads or cannot be encoded; and
Ctrl-C at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import create_trial
from safetensors.torch import save_file
from sqlalchemy import event
from tokenizers import Tokenizer
from torch import zeros

import tiny
from radistill.cli.errors import errors_in_one_line
from radistill.diagnosis.shared_study import open_study, study_url
from radistill.errors import RadistillError
from radistill.locks import locked
from small_recipe import small_recipe
from small_run import small_run

READ_ONLY = """
import builtins, errno, io, os, sys
def refused(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
def guarded(real):
    def open(path, mode="r", *arguments, **more):
        if set(mode) & set("wax+") and str(path) != os.devnull:
            refused(path)
        return real(path, mode, *arguments, **more)
    return open
builtins.open, io.open = guarded(builtins.open), guarded(io.open)
def of_system(path, flags, *arguments, real=os.open, **more):
    if flags & (os.O_WRONLY | os.O_RDWR) and str(path) != os.devnull:
        refused(path)
    return real(path, flags, *arguments, **more)
os.open = of_system
os.mkdir = os.rename = os.replace = os.unlink = lambda path, *arguments, **more: refused(path)
from radistill.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["radistill", *line.split()]
    try:
        main()
    except SystemExit as leaving:
        print("code", leaving.code, file=sys.stderr, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run in `run`, a model in `base` and another in `model`, which `recipe.yaml` names."""
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path)
    tiny.save("llama", tmp_path / "model")
    small_recipe(tmp_path, {"source": "data"}, diagnose={"budget": 2, "by": "redundancy"})
    return tmp_path


@pytest.mark.slow
def test_on_a_read_only_disk_commands_that_only_read_work_and_the_others_say_one_line(folder: Path) -> None:
    reading = ["plan show run", "inspect base", "run recipe.yaml --dry-run"]
    reading += ["generate base --prompt a --skip 1 --max-new-tokens 2"]
    writing = ["report recipe.yaml --out run", "run recipe.yaml --out new", "evaluate base --tasks recall"]
    writing += ["savings run", "export run --to hf --out out", "inspect nowhere/model.gguf"]
    ended = subprocess.run(
        [sys.executable, "-c", READ_ONLY], input="\n".join(reading + writing), capture_output=True, text=True
    )
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    codes = [line.split()[1] for line in lines if line.startswith("code ")]
    assert codes == ["0"] * len(reading) + ["2"] * len(writing), ended.stderr
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == len(writing)
    assert all("Read-only file system" in line for line in errors[:-1])
    assert errors[0].startswith("error: run/.lock: Read-only file system; choose a place")


def add_trials(folder: Path) -> None:
    """SQLite's own limit on the size of a file stands in for the disk's."""
    study = open_study(study_url(folder), "a study")
    engine = study._storage._backend.engine  # type: ignore[attr-defined]
    engine.dispose()
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
    for number in range(1000):
        study.add_trial(create_trial(value=0.0, user_attrs={"text": f"{number} " * 200}))


def write_text(folder: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as handle:
        handle.write("text")


FULL: dict[str, Callable[[Path], object]] = {
    "a file": write_text,
    "a tokenizer": lambda folder: Tokenizer.from_file(str(folder / "tokenizer.json")).save("/dev/full"),
    "weights": lambda folder: save_file({"a": zeros(4)}, "/dev/full/out"),
    "a study": add_trials,
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what == "a study")) for what in FULL])
def test_whatever_library_writes_a_full_disk_is_one_line_that_says_what_is_kept(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save("llama", tmp_path / "model")
    with pytest.raises(SystemExit) as leaving, errors_in_one_line(), locked(tmp_path / "out"):
        FULL[what](model)
    assert leaving.value.code == 2
    kept = f"; what is done is kept in {tmp_path / 'out'}, and the same command goes on from there\n"
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(kept)
    if what != "weights":
        assert "No space left on device; make room or choose another folder" in said


def test_a_temporary_name_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("runs/.0123456789abcdef.7.tmp", "runs/.0123456789abcdef.7.tmp/model/config.json"):
        with pytest.raises(SystemExit), errors_in_one_line():
            raise OSError(30, "Read-only file system", name)
        assert capsys.readouterr().err.startswith("error: runs: Read-only file system; ")


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        raise ZeroDivisionError


def test_what_is_kept_is_not_said_of_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), errors_in_one_line(), locked(tmp_path):
        raise RadistillError("a field is wrong")
    assert capsys.readouterr().err == "error: a field is wrong\n"


def radistill(*arguments: str, **more: object) -> "subprocess.Popen[str]":
    # Whoever starts the tests in the background may have Ctrl-C ignored.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from radistill.cli import main; sys.argv = ['radistill', *sys.argv[1:]]; main()"
    pipes: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], text=True, **pipes)  # type: ignore[call-overload]


@pytest.mark.slow
def test_output_that_nobody_reads_or_that_cannot_be_encoded(folder: Path) -> None:
    plain = radistill("plan", "show", "run", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, said = plain.communicate()
    assert (plain.returncode, said) == (0, "")
    assert "attention" in out
    assert out.isascii()
    unread = radistill("inspect", "base", "--json")
    assert unread.stdout is not None
    unread.stdout.close()
    unread.stdout = None
    assert "Traceback" not in unread.communicate()[1]


def last_line_after(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("diagnose", ("diagnose.selector=bayes", "diagnose.selector.trials=100000")),
        ("distill", ("distill.steps=100000", "align=null", "convert.init=zero")),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")], ids=["INT", "TERM"]
)
def test_whoever_stops_a_run_is_told_what_is_kept(
    number: signal.Signals, word: str, stage: str, settings: tuple[str, ...], folder: Path
) -> None:
    process = radistill("run", "recipe.yaml", "--out", "out", *(f"-s{one}" for one in settings))
    assert process.stderr is not None
    while f"[{stage}:hybrid] …" not in (line := process.stderr.readline()):
        assert line
    kept = "what is done is kept in out, and the same command goes on from there"
    assert last_line_after(process, number) == f"{word}; the stage {stage} is unfinished; {kept}"


@pytest.mark.parametrize("moment", ["evaluations/base/.lock", "evaluations/base/answers/recall.jsonl"])
@pytest.mark.slow
def test_ctrl_c_during_an_evaluation_says_what_is_kept(moment: str, folder: Path) -> None:
    process = radistill("evaluate", "base", "--tasks", "recall", "--contexts", "400", "--limit", "500")
    while not Path(moment).exists():
        assert process.poll() is None
        time.sleep(0.02)
    kept = "what is done is kept in evaluations/base, and the same command goes on from there"
    assert last_line_after(process) == f"interrupted; {kept}"


def test_ctrl_c_before_any_work_says_that_nothing_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, errors_in_one_line():
        raise KeyboardInterrupt
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "interrupted; nothing was changed, and the same command starts again\n"


@pytest.mark.parametrize("module", ["radistill.cli.commands", "typer"])
def test_ctrl_c_while_the_program_starts_is_no_traceback(module: str) -> None:
    program = (
        "import sys\n"
        "class Stop:\n"
        " def find_spec(self, name, path, target=None):\n"
        f"  if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from radistill.cli import main\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = "interrupted; nothing was changed, and the same command starts again\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", said)


STOPS = pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "ended by SIGTERM", 143)]
)


@STOPS
def test_signals_are_answered_as_before_when_a_command_has_ended(number: int, word: str, code: int) -> None:
    before = signal.signal(number, signal.default_int_handler)  # it may be ignored where tests run in the background
    try:
        with errors_in_one_line():
            assert signal.getsignal(number) != signal.default_int_handler
        assert signal.getsignal(number) == signal.default_int_handler
        signal.signal(number, signal.SIG_IGN)
        with errors_in_one_line():
            assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@STOPS
def test_a_stop_that_a_library_turns_into_an_error_of_its_own_is_still_a_stop(
    number: signal.Signals, word: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal that came inside safetensors ended in "could not determine the shape of object type"."""

    def library() -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
        raise ValueError("could not determine the shape of object type")

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as leaving, errors_in_one_line(), locked(tmp_path / "out"):
            library()
    finally:
        signal.signal(number, before)
    assert leaving.value.code == code
    kept = f"what is done is kept in {tmp_path / 'out'}, and the same command goes on from there"
    assert capsys.readouterr().err == f"{word}; {kept}\n"


def test_streams_that_are_closed_are_there_for_what_asks_them() -> None:
    program = (
        "import sys\n"
        "from radistill.cli import main\n"
        "sys.argv[1:] = ['recipes']\n"
        "try: main()\n"
        "finally: print(sys.stdin.isatty(), sys.stdout.isatty(), file=sys.stderr)"
    )
    ended = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&-', sys.executable, program], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "False False\n")
