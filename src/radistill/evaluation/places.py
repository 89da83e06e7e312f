"""Which models a user means by a name, and where their results of tasks lie."""

from dataclasses import dataclass
from pathlib import Path

from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.evaluation.run_tasks import SUMMARY, file_name


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


def subjects_of(name: str, out: Path | None = None) -> list[Subject]:
    """Of a run folder its base and its hybrid, side by side; else the one model that was named.

    Args:
        name: a run folder, or what `load` takes.
        out: where results go instead of `RUN/tasks` or `evaluations/MODEL`.

    Raises:
        RadistillError: if the run has no plan or no student yet.
    """
    folders = folders_of(name, out)
    if len(folders) == 1:
        return [Subject(name, name, folders[name])]
    student = Path(name) / "student"
    if not (student / "config.json").is_file():
        raise RadistillError(f"{student}: this run has no student there yet; run `radistill run --out {name}` first")
    models = {"base": Plan.load(Path(name) / "plan.json").model, "hybrid": str(student)}
    return [Subject(key, models[key], folder) for key, folder in folders.items()]


def folders_of(name: str, out: Path | None = None) -> dict[str, Path]:
    """Where results go: of a run folder those of `base` and of `hybrid`, else those of the model, by its name."""
    if (Path(name) / "run.json").is_file():
        return folders_in(out or Path(name) / "tasks")
    return {name: out or Path("evaluations") / file_name(name.strip("/"))}


def folders_in(tasks: Path) -> dict[str, Path]:
    """The folders of both models of a run, below the one of its tasks."""
    return {"base": tasks / "base", "hybrid": tasks / "hybrid"}


def results_folder(name: str) -> Path:
    """Where the results are of a model, of a run's hybrid, or a folder of results itself.

    Raises:
        RadistillError: if there are none.
    """
    usual = list(folders_of(name).values())[-1]
    return Path(name) if (Path(name) / SUMMARY).is_file() else _checked(usual, name)


def results_of_run(name: str) -> dict[str, Path]:
    """Where the results of both models of a run are.

    Raises:
        RadistillError: if one of them has none.
    """
    return {key: _checked(folder, name) for key, folder in folders_of(name).items()}


def _checked(folder: Path, name: str) -> Path:
    if not (folder / SUMMARY).is_file():
        raise RadistillError(
            f"{name}: has no results of tasks ({folder / SUMMARY} is not there); "
            f"first: radistill evaluate {name} --tasks gsm8k"
        )
    return folder
