"""The documentation is tested: what it names exists, and its example runs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main

import radistill
from radistill.cli.commands import app
from radistill.models.loading import Model
from radistill.pipeline.stages import STAGES
from radistill.recipes import shipped_recipes
from radistill.runs.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def code_of(page: Path) -> list[str]:
    """Every piece of code on a page: lines of fenced blocks, and spans in backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + spans


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w/.])((?:docs|recipes|benchmarks|src|tests|\.ci)/[\w./-]+\w)", page.read_text())
    links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_that_a_page_links_to_exist(page: Path) -> None:
    for file, heading in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
        # As GitHub names them.
        assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    for line in code_of(page):
        match = re.match(r"\s*(?:\$ )?radistill ([a-z][\w-]*)(.*)", line)
        if match is None:
            continue
        name, rest = match.groups()
        assert name in COMMANDS, line
        command = COMMANDS[name]
        if hasattr(command, "commands") and rest.split():  # a group of commands
            command = command.commands[rest.split()[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        given = [word.split("=")[0] for word in shlex.split(rest, comments=True) if word.startswith("--")]
        assert set(given) <= options | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in code_of(page):
        if match := re.match(r"\s*make ([a-z-]+)$", line):
            assert f"\n{match[1]}:" in makefile, line


def test_what_to_touch_for_something_new_exists() -> None:
    """Each section of CONTRIBUTING on something new lists files, and the first one is where to begin."""
    _, *sections = re.split(r"^### ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    names = [section.splitlines()[0] for section in sections]
    assert names == ["A selector", "A loss", "A mixer", "A target", "A task", "A source family"]
    for section in sections:
        listed = re.findall(r"^- `([^`]+)`", section, flags=re.MULTILINE)
        assert len(listed) >= 4, section
        assert listed[0].startswith("src/radistill/")
        assert any(name.startswith("tests/") for name in listed)
        assert any(name.startswith("docs/") for name in listed)
        assert [name for name in listed if not (ROOT / name).is_file()] == []


def test_the_changes_of_this_version_are_told() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first is not None
    assert first[1] == version


def test_overrides_that_the_pages_show_are_fields_of_a_recipe() -> None:
    shown = {
        match for page in PAGES for line in code_of(page) for match in re.findall(r"--set ([a-z_.]+=[^\s`]+)", line)
    }
    assert shown
    for override in shown:
        load_recipe(shipped_recipes()["quickstart"], [override])


def test_every_stage_is_a_command_and_explains_itself() -> None:
    assert set(STAGES) < set(COMMANDS)
    for name, command in COMMANDS.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if parameter.name != "help"), name


def test_what_the_package_exports_is_there_and_documented() -> None:
    page = (ROOT / "docs" / "how-to" / "python.md").read_text()
    for name in radistill.__all__:
        assert getattr(radistill, name).__doc__, name
        assert name in page, name


@pytest.mark.real
@pytest.mark.slow
def test_the_whole_way_in_the_library_runs(
    smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/how-to/python.md, as it stands there, on the real model."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "python.md").read_text(), flags=re.DOTALL)
    statements = [line for line in block.splitlines() if line and not line.startswith(("from ", "#"))]
    assert len(statements) <= 15
    exec(compile(block, "docs/how-to/python.md", "exec"), {})
    assert "Evaluation(kl=" in capsys.readouterr().out
    assert (tmp_path / "student" / "model.safetensors").exists()
