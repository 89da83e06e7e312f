"""Which models a user means by a name, and where their results of tasks lie."""

from dataclasses import dataclass
from pathlib import Path

from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.evaluation.results import SUMMARY, file_name
from radistill.runs.folder import MAIN, RunFolder, student_of


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        name: what people call it.
        model: what `models.loading.load` takes.
        folder: where its results of tasks go.
    """

    name: str
    model: str
    folder: Path


def subjects_of(name: str, out: Path | None = None, *, arms: bool = False) -> list[Subject]:
    """Of a run folder its base and its hybrid, side by side; else the one model that was named.

    Args:
        name: a run folder, or what `load` takes.
        out: where results go instead of `RUN/tasks` or `evaluations/MODEL`.
        arms: of a run folder all arms too.

    Raises:
        RadistillError: if the run has no plan or no student yet.
    """
    folder = RunFolder(name)
    if not folder.record.is_file():
        return [Subject(name, name, out or _folder_of(name))]
    tasks = out or folder.tasks
    hybrids = [MAIN, *(sorted(path.name for path in folder.arms.glob("*")) if arms else [])]
    students = {hybrid: str(student_of(folder.path, hybrid).student) for hybrid in hybrids}
    models = {"base": Plan.load(folder.hybrid().plan).model, **students}
    return [Subject(key, model, tasks / key) for key, model in models.items()]


def results_in(tasks: Path) -> dict[str, Path]:
    """The folders with results below a run's folder of tasks: base and hybrid first."""
    found = sorted(path.name for path in tasks.glob("*") if (path / SUMMARY).is_file())
    return {name: tasks / name for name in sorted(found, key=lambda name: (name != "base", name != MAIN))}


def results_of(name: str, *, alone: bool = False) -> dict[str, Path]:
    """Where the results are: of a run's models those of each, else of a model, or a folder of results itself.

    Raises:
        RadistillError: if there are none; of a run, if its hybrid has none, or, if it stands `alone`, its base.
    """
    folder = RunFolder(name)
    if (folder.path / SUMMARY).is_file():
        return {name: folder.path}
    if not folder.record.is_file():
        return {name: _checked(_folder_of(name), name)}
    found = results_in(folder.tasks)
    return {key: _checked(folder.tasks / key, name) for key in ("base", MAIN)[not alone :]} | found


def _folder_of(model: str) -> Path:
    # The folder itself and the one above it have names too.
    name = model.strip("/") if model.strip("./") else Path(model).resolve().name
    return Path("evaluations") / file_name(name)


def _checked(folder: Path, name: str) -> Path:
    if not (folder / SUMMARY).is_file():
        raise RadistillError(
            f"{name}: has no results of tasks ({folder / SUMMARY} is not there); "
            f"first: radistill evaluate {name} --tasks gsm8k"
        )
    return folder
