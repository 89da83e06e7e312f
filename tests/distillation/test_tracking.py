"""Where the curve goes besides distill.json."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distill_case import RESUMABLE, models, run
from transformers import TrainerCallback, integrations

from radistill.distillation.distill import DistillResult
from radistill.distillation.distill_settings import DistillSettings
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
    monkeypatch.setattr(integrations, "is_tensorboard_available", lambda: installed)
    reporting_to("auto", tmp_path if with_folder else None)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("name", "callback"), [("wandb", "WandbCallback"), ("trackio", "TrackioCallback")])
def test_another_tracker_gets_the_curve(
    name: str, callback: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for transformers' callback: the services themselves are not called in a test."""
    seen: list[dict[str, Any]] = []
    finished: list[str] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            seen.append({"run": args.run_name, "step": state.global_step, **logs})

    monkeypatch.setattr(integrations, callback, Recorder)
    monkeypatch.setattr(integrations, f"is_{name}_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "wandb", SimpleNamespace(finish=lambda: finished.append("wandb")))
    result = reporting_to(name, tmp_path / "my-run")
    assert [row["loss"] for row in seen if "loss" in row] == [row["loss"] for row in result.curve]
    assert [row["step"] for row in seen if "eval_kl" in row] == [0, 2, 3]
    assert {row["run"] for row in seen} == {"my-run"}
    assert finished == (["wandb"] if name == "wandb" else [])


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("installed", [True, False])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations, f"is_{name}_available", lambda: installed)
    match = f"^finetune.report_to is '{name}', which needs the extra: pip install 'radistill\\[{name}\\]'"
    with nullcontext() if installed else pytest.raises(RadistillError, match=match):
        check_tracker(name, "finetune")
