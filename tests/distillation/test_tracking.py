"""Where the curve goes besides distill.json."""

from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from distill_case import RESUMABLE, models, run

from radistill.distillation import tracking
from radistill.distillation.distill import DistillResult
from radistill.distillation.settings import DistillSettings
from radistill.distillation.tracking import check_tracker
from radistill.errors import RadistillError

TRACKERS = ("tensorboard", "wandb", "trackio")


def reporting_to(name: str, folder: Path | None) -> DistillResult:
    settings = {**RESUMABLE.model_dump(), "steps": 3, "eval_steps": 2, "report_to": name}
    teacher, student = models()
    return run(student, teacher, DistillSettings.model_validate(settings), folder=folder)


@pytest.mark.parametrize("name", ["tensorboard", "auto"])
def test_tensorboard_gets_the_curve(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = reporting_to(name, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [row["loss"] for row in result.curve]
    )
    assert [event.step for event in events.Scalars("eval/kl")] == [0, 2, 3]


@pytest.mark.parametrize(("installed", "with_folder"), [(False, True), (True, False)])
def test_auto_reports_nowhere_without_tensorboard_or_without_a_folder(
    installed: bool, with_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: object() if installed else None)
    reporting_to("auto", tmp_path if with_folder else None)
    assert not (tmp_path / "tensorboard").exists()


class Service(ModuleType):
    """A stand-in for wandb or trackio: the services themselves are not called in a test."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: dict[str, Any] = {}
        self.logged: list[dict[str, float]] = []
        self.finished = 0

    def init(self, **options: Any) -> None:
        self.opened = options

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "train/global_step")

    def log(self, figures: dict[str, float]) -> None:
        assert not self.finished
        self.logged.append(figures)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service(request.param)
    monkeypatch.setitem(__import__("sys").modules, request.param, made)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made


@pytest.mark.parametrize("service", ["wandb", "trackio"], indirect=True)
def test_another_tracker_gets_the_curve(service: Service, tmp_path: Path) -> None:
    result = reporting_to(service.__name__, tmp_path / "my-run")
    rows = [row for row in service.logged if "train/loss" in row]
    for name in ("loss", "learning_rate", "gradient_norm", "tokens", "on_policy"):
        assert [row[f"train/{name}"] for row in rows] == [row[name] for row in result.curve]
    measures = [row for row in service.logged if "eval/kl" in row]
    assert [row["eval/kl"] for row in measures] == [row["kl"] for row in result.evaluations]
    assert [row["train/global_step"] for row in measures] == [0, 2, 3]
    assert rows[-1]["train/response_tokens"] == result.response_tokens
    assert (service.opened["name"], service.opened["project"]) == ("my-run", "radistill")
    assert service.opened["config"]["steps"] == 3
    assert service.finished == 1


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_a_failed_training_is_finished_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setattr(service, "log", None)
    with pytest.raises(TypeError):
        reporting_to("wandb", None)
    assert service.finished == 1
    assert service.opened["project"] == "mine"


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("installed", [True, False])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda asked: object() if installed and asked == name else None)
    match = f"^finetune.report_to is '{name}', which needs the extra: pip install 'radistill\\[{name}\\]'"
    with nullcontext() if installed else pytest.raises(RadistillError, match=match):
        check_tracker(name, "finetune")
