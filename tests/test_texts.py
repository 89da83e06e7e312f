"""What may be shown: text that commands no terminal and gives no password away, wherever it comes from."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from radistill.cli import main
from radistill.console import console, note, progress, show
from radistill.diagnosis.shared_study import open_study
from radistill.errors import RadistillError
from radistill.files import read_json, write_json
from radistill.models import loading
from radistill.report.page import write_report
from radistill.texts import readable
from small_run import write_plan

COMMANDS = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202e \u2066 \x08\x7f \r"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:S3CRET@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg2://me:sec:S3CRET@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("mysql://me:p@S3CRET@host/db", "mysql://me:***@host/db"),
        ("mysql://me:my S3CRET 1@host/db", "mysql://me:***@host/db"),
        ("mysql://me@corp:S3CRET/x?y@host/db", "mysql://me@corp:***@host/db"),
        ("mysql://me:%53S3CRET%40@host/db", "mysql://me:***@host/db"),
        ("redis://:S3CRET@host", "redis://:***@host"),
        ("mysql://host/db?user=me&password=S3CRET", "mysql://host/db?user=me&password=***"),
        ("mysql://host/db?p%61ssword=S3CRET&charset=utf8", "mysql://host/db?p%61ssword=***&charset=utf8"),
        ("mysql://host/db?passwd=a@S3CRET;x'y", "mysql://host/db?passwd=***"),
        ("https://host/x.jsonl?X-Amz-Signature=S3CRET&a=1", "https://host/x.jsonl?X-Amz-Signature=***&a=1"),
        ("https://host/x?api_key=S3CRET#top", "https://host/x?api_key=***"),
        ("https://host/x?access_token=S3CRET", "https://host/x?access_token=***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3DS3CRET", "mssql+pyodbc:///?odbc_connect=***"),
    ],
)
def test_passwords_in_urls(url: str, shown: str) -> None:
    assert readable(url) == shown
    for text in ("storage: {}\nnext: 1", "({}), not 'x'", '{{"storage": "{}", "x": 1}}', "not '{}'.", "{}: wrong"):
        assert readable(text.format(url)) == text.format(shown)
    assert str(RadistillError(f"{url}: wrong")) == f"{shown}: wrong"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////a:b/c@d.db",
        "https://host:8080/v1?page=2",
        "https://host:8080/v1, https://host: no, https://host:8080 said to me@host, https://host:80.",
        "write to me@host: see https://huggingface.co/org/model",
        "data/a:b@c?token=1",
        "https://user@host/x",
        "Grüße, 世界 שלום 🙂 {} [/v] [red] :smile:\n\t",
    ],
)
def test_what_is_left_as_it_is(text: str) -> None:
    assert readable(text) == text


def test_no_text_commands_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"[red]x[/v] :smile: {COMMANDS}"
    rows = Table("a", title=text, caption=text)
    rows.add_row(text)
    rows.add_row(Text(text))
    show(rows)
    show(text)
    note(text)
    with progress(text, total=1) as advance:
        advance(status=text)
    shown = capsys.readouterr()
    assert shown.out.count("[red]x[/v] :smile:") == 5
    assert shown.err.count("[red]x[/v] :smile:") >= 2
    assert not set(COMMANDS) - {" ", "\r", *"[2J]0;title31m"} & set(shown.out + shown.err)
    assert not console.is_terminal


STATUS = "loss 0.092, 1,264 tok/s, on-policy 100%, held-out KL 0.368"


def test_a_long_status_goes_on_in_a_second_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("radistill.console.console", Console(file=stream, width=80, force_terminal=True))
    with progress("distill", 400, "steps") as advance:
        advance(400, STATUS)
    shown = Text.from_ansi(stream.getvalue()).plain
    assert "held-out KL 0.368" in " ".join(shown.split())
    assert "…" not in shown


def test_a_finished_bar_is_one_line_of_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("distill", 400, "steps") as advance:
        advance(400, STATUS)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("distill")
    assert line.rstrip().endswith(STATUS)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    write_plan(tmp_path / "plan.json", "世界", replace=[0])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for arguments in (("plan", "show", str(tmp_path / "plan.json")), ("plan", "show", "世界")):
        monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
        with pytest.raises(SystemExit):
            main()
    for stream, text in ((sys.stdout, rb"\u4e16\u754c"), (sys.stderr, rb"error: \u4e16\u754c: no such file")):
        stream.flush()
        assert text in stream.buffer.getvalue()  # type: ignore[attr-defined]


def run_with(folder: Path, storage: str) -> Path:
    write_plan(folder / "plan.json", "model", replace=[0])
    recipe = {
        "model": "model",
        "data": {"kind": "jsonl", "path": "data.jsonl"},
        "diagnose": {"budget": 1, "by": "redundancy", "selector": {"kind": "bayes", "storage": storage}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def radistill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["radistill", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


def test_no_password_is_shown(tmp_path: Path, radistill: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_with(tmp_path / "run", "mysql://me:p@S3CRET@host/db?password=S3CRET&ssl=1")
    page = write_report(folder).read_text()
    assert "S3CRET" not in page
    assert "mysql://me:***@host/db?password=***&amp;ssl=1" in page
    recipe = tmp_path / "recipe.yaml"
    for wrong in (
        {"selector": "mysql://me:S3CRET@host/db"},
        {"selector": {"kind": "bayes", "trials": "mysql://me:S3CRET@host/db"}},
        {"selector": {"kind": "mysql://me:S3CRET@host/db"}},
    ):
        settings = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe.write_text(yaml.safe_dump({**settings, "diagnose": {"budget": 1, **wrong}}))
        said = radistill("run", recipe, "--out", tmp_path / "out")
        assert "mysql://me:***@host/db" in said
        assert "S3CRET" not in said
    said = radistill("run", folder / "recipe.yaml", "--set", "diagnose.selector.storage.x=a://b:S3CRET@c")
    assert "S3CRET" not in said
    with pytest.raises(RadistillError, match=r"mysql://me:\*\*\*@host/db.*: write an @ in a password as %40"):
        open_study("mysql://me:p@S3CRET@host/db", "x")

    def load(*_: object, **__: object) -> None:
        raise LookupError("a library says mysql://me:S3CRET@host/db")

    monkeypatch.setattr(loading, "load", load)
    said = radistill("components", "model")
    assert "LookupError: a library says mysql://me:***@host/db" in said
    assert "Traceback" in said


def test_a_plan_from_elsewhere(tmp_path: Path, radistill: Callable[..., str]) -> None:
    write_plan(tmp_path / "plan.json", f"[/v]{COMMANDS}", replace=[0])
    plan = read_json(tmp_path / "plan.json")
    plan["versions"] = {f"[/v]{COMMANDS}": "1"}
    plan["selector"] = {"kind": f"[b]{COMMANDS}", "storage": "mysql://me:S3CRET@host/db"}
    write_json(tmp_path / "plan.json", plan)
    for command in (("show", tmp_path / "plan.json"), ("diff", tmp_path / "plan.json", tmp_path / "plan.json")):
        said = radistill("plan", *command)
        assert "[/v]" in said
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\x08", "\x7f"} & set(said)
        assert "S3CRET" not in said
