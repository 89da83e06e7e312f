"""A number format that the processor emulates is named, once, and others are not."""

from pathlib import Path

import pytest
import torch

import tiny
from radistill.models import number_formats
from radistill.models.loading import load


@pytest.fixture(autouse=True)
def fresh() -> None:
    number_formats.times_as_slow.cache_clear()
    number_formats.warn_if_slow.cache_clear()


def test_what_is_measured_is_a_ratio_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_formats.times_as_slow(torch.float64) > 0
    number_formats.times_as_slow.cache_clear()
    monkeypatch.setattr(number_formats, "_seconds", lambda dtype: 6.0 if dtype is torch.float64 else 2.0)
    assert number_formats.times_as_slow(torch.float64) == 3.0


@pytest.mark.parametrize("times", [3.0, 90.0])
def test_only_a_slow_format_is_named_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: float
) -> None:
    monkeypatch.setattr(number_formats, "_seconds", lambda dtype: times if dtype is torch.bfloat16 else 1.0)
    folder = tiny.save("llama", tmp_path / "model", layers=2)
    for dtype in ("float32", "bfloat16", "bfloat16"):
        load(folder, dtype=dtype)
    said = capsys.readouterr().err
    assert said.count("bfloat16: 90 times as slow as float32") == (times == 90.0)
    assert "float32:" not in said
