"""Plans: what is refused when one is read, and how they are shown."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from radistill.cli import main
from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.report.plan_table import layer_strip, plan_table

GOOD: dict[str, Any] = {
    "version": 1,
    "model": "smollm2-135m",
    "model_fingerprint": "0123456789abcdef" * 4,
    "num_layers": 30,
    "ssm_layers": [4],
    "replace": [3, 6, 7, 29],
    "scores": {"3": 0.9, "6": 0.95},
    "score_kind": "acceptance alone",
    "objective": {"name": "acceptance", "value": 0.8125},
    "acceptance_rate": 0.8125,
    "mean_accepted_length": {"1": 0.8, "2": 1.4, "4": 2.5, "8": 3.1},
    "kl": 0.56,
    "selector": {"kind": "bayes", "trials": 60, "startup": 10},
    "search": [{"trial": 0, "layers": [3, 6, 7, 29], "value": 0.8125}],
    "seconds": 61.5,
    "forward_tokens": 123456,
    "calibration_hash": "fedcba9876543210" * 4,
    "seed": 7,
    "versions": {"python": "3.11.9", "torch": "2.13.0"},
}
OTHER = {**GOOD, "replace": [3, 6, 8, 29], "acceptance_rate": 0.7, "versions": {"python": "3.11.9", "optuna": "5.0"}}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_a_good_plan(tmp_path: Path) -> None:
    assert Plan.load(written(tmp_path)).replace == [3, 6, 7, 29]
    assert Plan.load(written(tmp_path, scores=None, score_kind=None, search=[])).scores is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replace": [3, 30]}, "replace[1] is 30, but this model has layers 0 to 29"),
        ({"replace": [-1]}, "replace[0] is -1, but this model has layers 0 to 29"),
        ({"replace": [3, 3]}, "replace: must be sorted and without repeats"),
        ({"replace": "all"}, "replace: Input should be a valid array"),
        ({"ssm_layers": [31]}, "ssm_layers[0] is 31, but"),
        ({"ssm_layers": [2, 2]}, "ssm_layers names a layer twice"),
        ({"scores": {"44": 0.1}}, "scores is 44, but"),
        ({"scores": {"4": float("nan")}}, "not valid JSON (NaN is no finite number)"),
        ({"search": [{"trial": 0, "layers": [77], "value": 1}]}, "search[0].layers[0] is 77, but"),
        ({"search": [{"trial": -1, "layers": [7], "value": 1}]}, "search.0.trial: "),
        (
            {"search": [{"trial": 0, "layers": [7], "value": float("inf")}]},
            "not valid JSON (Infinity is no finite number)",
        ),
        ({"num_layers": 0}, "num_layers: "),
        ({"kl": float("nan")}, "not valid JSON (NaN is no finite number)"),
        ({"acceptance_rate": 1.5}, "acceptance_rate: "),
        ({"acceptance_rate": True}, "acceptance_rate: "),
        ({"mean_accepted_length": {"4": 4.5}}, "mean_accepted_length: is 4.5 at draft length 4, but must"),
        ({"mean_accepted_length": {"0": 0.0}}, "mean_accepted_length.0"),
        ({"objective": {"name": "acceptance"}}, "objective: must have a name"),
        ({"objective": {"name": 3, "value": 3}}, "objective: must have a name"),
        ({"objective": {"name": "kl", "value": float("nan")}}, "not valid JSON (NaN is no finite number)"),
        ({"seconds": -1}, "seconds: Input should be greater than or equal to 0"),
        ({"seconds": float("inf")}, "not valid JSON (Infinity is no finite number)"),
        ({"forward_tokens": -5}, "forward_tokens: "),
        ({"seed": -1}, "seed: "),
        ({"version": 2}, "version: Input should be 1"),
        ({"replaced": [1]}, "replaced: Extra inputs are not permitted"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(RadistillError) as refused:
        Plan.load(path)
    assert str(refused.value).startswith(f"{path}: {message}")
    assert "\n" not in str(refused.value)


def printed(*plans: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(plan_table({f"runs/{n}/plan.json": Plan.model_validate(plan) for n, plan in enumerate(plans)}))
    return capture.get()


def marked(text: str) -> set[str]:
    return {match[1].strip() for match in re.finditer(r"^≠ +([^ ]+(?: [^ ]+)*)", text, flags=re.MULTILINE)}


def test_the_layers_as_a_strip() -> None:
    assert layer_strip(Plan.model_validate(GOOD)) == "AAARMARRAA AAAAAAAAAA AAAAAAAAAR"


def test_a_plan_is_shown_whole() -> None:
    text = printed(GOOD)
    assert max(map(len, text.splitlines())) <= 80
    assert marked(text) == set()
    for shown in (
        "smollm2-135m", "0123456789ab ", "AAARMARRAA AAAAAAAAAA AAAAAAAAAR", "acceptance 0.8125", "81.2", "3.10",
        "0.560",
        "bayes, trials 60, startup 10", "123,456", "fedcba987654", "2.13.0",
    ):  # fmt: skip
        assert shown in text, shown


def test_two_plans_are_compared() -> None:
    text = printed(GOOD, OTHER)
    assert max(map(len, text.splitlines())) <= 80
    assert [line[:14].strip("≠ ") for line in text.splitlines() if line.startswith("≠")] == [
        "layers", "replaced", "only here", "acceptance", "torch", "optuna"
    ]  # fmt: skip
    assert re.search(r"≠ +only here +7 +8 ", text)
    assert marked(printed(GOOD, GOOD)) == set()


def test_many_layers_and_long_names_fit() -> None:
    plan = {**GOOD, "num_layers": 96, "replace": list(range(0, 96, 2)), "model": "somebody/" + "a-long-name-" * 8}
    text = printed(plan, OTHER)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["radistill", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code if isinstance(leaving.value.code, int) else 0


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert cli(monkeypatch, "plan", "show", str(tmp_path)) == 0  # a run folder
    assert "AAARMARRAA" in capsys.readouterr().out
    assert cli(monkeypatch, "plan", "diff", str(path), str(path)) == 0
    assert capsys.readouterr().out.count("AAARMARRAA") == 2
    for arguments, message in [
        (["show", str(tmp_path / "none.json")], "none.json: no such file"),
        (["diff", str(path), str(written(tmp_path, seconds=-1))], "plan.json: seconds: "),
    ]:
        assert cli(monkeypatch, "plan", *arguments) == 2
        assert message in capsys.readouterr().err
