"""The real student that the tests of the export share."""

from pathlib import Path

import pytest
from students import REPLACED, wake

from radistill.conversion import convert
from radistill.models.loading import Model


@pytest.fixture(scope="session")
def student(smollm2: Model) -> Model:
    """SmolLM2 with ten layers replaced by blocks that contribute. Read only."""
    converted = convert(smollm2, REPLACED, init="random")
    wake(converted, REPLACED, scale=0.5)
    return converted


@pytest.fixture(scope="session")
def student_folder(student: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    folder = tmp_path_factory.mktemp("export") / "student"
    student.save(folder)
    return folder
