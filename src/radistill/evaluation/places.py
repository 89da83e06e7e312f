"""Where the results of tasks lie, for a model or a run folder."""

from pathlib import Path

from radistill.errors import RadistillError
from radistill.evaluation.run_tasks import SUMMARY, file_name


def model_of(name: str) -> str:
    """The model that a user means: of a run folder its student, else what was named.

    Raises:
        RadistillError: if the run has no student yet.
    """
    if not _is_run(name):
        return name
    student = Path(name) / "student"
    if not (student / "config.json").is_file():
        raise RadistillError(f"{student}: this run has no student there yet; run `radistill run --out {name}` first")
    return str(student)


def default_folder(name: str) -> Path:
    """Where results go unless the user says otherwise: into a run's folder, or to `evaluations/`."""
    return Path(name) / "tasks" if _is_run(name) else Path("evaluations") / file_name(name.strip("/"))


def results_folder(name: str) -> Path:
    """Where the results are of a model, a run folder, or a folder of results itself.

    Raises:
        RadistillError: if there are none.
    """
    candidates = [Path(name), default_folder(name)]
    found = next((folder for folder in candidates if (folder / SUMMARY).is_file()), None)
    if found is None:
        raise RadistillError(
            f"{name}: has no results of tasks ({candidates[-1] / SUMMARY} is not there); "
            f"first: radistill evaluate {name} --tasks gsm8k"
        )
    return found


def _is_run(name: str) -> bool:
    return (Path(name) / "run.json").is_file()
