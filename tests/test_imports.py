"""Imports go one way: a package knows only those below it, and no module knows itself through another."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import radistill
from radistill.runs.recipe import load_recipe
from report import example_run

ROOT = Path(radistill.__file__).parent
FLOORS = (
    ("cli",),
    ("pipeline",),
    ("report", "export"),
    ("evaluation",),
    ("runs",),
    ("distillation",),
    ("conversion",),
    ("diagnosis",),
    ("speculation",),
    ("data",),
    ("models",),
    ("mixers",),
)
"""From the top; modules beside the packages, such as `errors`, are below all of them."""


def modules(root: Path) -> dict[str, Path]:
    """Every module of a package, by its full name; a package is its `__init__`."""
    paths = {path.relative_to(root.parent).with_suffix("").parts: path for path in root.rglob("*.py")}
    return {".".join(name[:-1] if name[-1] == "__init__" else name): path for name, path in paths.items()}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a file imports by name, anywhere: also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}:{node.lineno}: write the full name"  # noqa: PT018
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names if node.module in known)


def executed(importer: str, name: str) -> set[str]:
    """What importing a module runs: itself, and the packages around it that do not hold the importer as well."""
    parts = name.split(".")
    names = {".".join(parts[: end + 1]) for end in range(len(parts))}
    return {one for one in names if one == name or not f"{importer}.".startswith(f"{one}.")}


def graph_of(root: Path) -> dict[str, set[str]]:
    """What the import of each module of a package runs of the others."""
    known = modules(root)
    return {
        importer: {one for name in imported(path, known) for one in executed(importer, name)} - {importer}
        for importer, path in known.items()
    }


def floor(module: str) -> int:
    """How far from the top a module is; the package itself, which hands out functions of all others, is above them."""
    if "." not in module:
        return -1
    package = module.split(".")[1]
    return next((number for number, names in enumerate(FLOORS) if package in names), len(FLOORS))


def wrong_way(graph: dict[str, set[str]]) -> list[str]:
    """The imports that go up."""
    return [
        f"{importer} -> {name}"
        for importer, names in sorted(graph.items())
        for name in sorted(names)
        if floor(name) < floor(importer) or (".report" in importer and ".export" in name)
    ]


def test_imports_go_down() -> None:
    assert wrong_way(graph_of(ROOT)) == []


def test_no_module_imports_itself_through_others() -> None:
    graph = graph_of(ROOT)
    assert len(graph) > 200
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_an_import_that_is_hidden_is_found(tmp_path: Path) -> None:
    files = {
        "radistill/__init__.py": "",
        "radistill/errors.py": "import radistill\n",
        "radistill/models/__init__.py": "",
        "radistill/models/one.py": "def f():\n from radistill.models import two\n from radistill.cli.show import f\n",
        "radistill/models/two.py": "if TYPE_CHECKING:\n    from radistill.models.one import f\n",
        "radistill/cli/__init__.py": "from radistill.errors import RadistillError\n",
        "radistill/cli/show.py": "import radistill.models.one\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = graph_of(tmp_path / "radistill")
    assert graph["radistill.models.one"] == {"radistill.models.two", "radistill.cli", "radistill.cli.show"}
    assert wrong_way(graph) == [
        "radistill.errors -> radistill",
        "radistill.models.one -> radistill.cli",
        "radistill.models.one -> radistill.cli.show",
    ]
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


ANSWERS = {
    "--help": "Transformer",
    "--version": "radistill",
    "run --help": "--dry-run",
    "recipes": "quickstart",
    "recipes quickstart": "diagnose:",
    "plan show plan.json": "replace",
    "plan diff plan.json plan.json": "replace",
    "compare one two": "svamp",
    "compare run": "svamp",
    "report --out example": "",
}
ONE_BY_ONE = """
import contextlib, io, json, sys
from radistill.cli import main
for command in sys.argv[1:]:
    sys.argv[1:] = command.split()
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    slow = [name for name in ("torch", "transformers", "optuna", "scipy") if name in sys.modules]
    print(json.dumps([said.getvalue(), slow]))
"""


def test_what_only_reads_files_answers_without_torch(tmp_path: Path) -> None:
    """Torch takes seconds to import; a command that only reads files answers at once."""
    (tmp_path / "plan.json").write_text(json.dumps(example_run.plan(4, [1, 2])))
    for folder in ("one", "two", "run/tasks/base", "run/tasks/hybrid"):
        (tmp_path / folder).mkdir(parents=True)
        rows = "".join(f'{{"key": "{key}", "correct": {right}}}\n' for key, right in (("a", "true"), ("b", "false")))
        (tmp_path / folder / "svamp.jsonl").write_text(rows)
        summary = {"model": folder, "tasks": {"svamp": {"n": 2, "settings": {"max_new_tokens": 8}}}}
        (tmp_path / folder / "tasks.json").write_text(json.dumps(summary))
    (tmp_path / "run/run.json").write_text("{}")
    example = example_run.write_example_run(tmp_path / "example")
    example_run.put_on_record(example, load_recipe(example / "recipe.yaml"))
    assert not (example / "report.html").exists()
    command = [sys.executable, "-c", ONE_BY_ONE, *ANSWERS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(ANSWERS), done
    for (name, answer), (said, slow) in zip(ANSWERS.items(), told, strict=True):
        assert answer in said, name
        assert slow == [], name
    assert (example / "report.html").exists()
