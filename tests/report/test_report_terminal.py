"""The table in the terminal."""

import io
import math
from typing import Any

import pytest
from example_run import evaluation
from rich.console import Console

from radistill.report.terminal import evaluation_table, print_evaluation


def printed(results: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(evaluation_table(results))
    return stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_figures_and_order() -> None:
    lines = [line.split("  ") for line in printed(evaluation()).splitlines() if line.strip()]
    names = [line[0].strip() for line in lines]
    start = names.index("base")
    order = ["base", "draft at start", "hybrid at start", "hybrid", "uniform at start", "uniform"]
    assert names[start : start + 6] == order
    hybrid = [cell.strip() for cell in lines[start + 3] if cell.strip()]
    assert hybrid == ["hybrid", "0.137", "85.1 %", "1.61", "29.2 %", "15,360"]
    assert "\N{EN DASH}" in "".join(lines[start + 2])  # exact match was not measured


@pytest.mark.parametrize("value", [None, math.nan, 1.234e15, -1.234e-12])
def test_it_fits_eighty_columns(value: float | None) -> None:
    results = evaluation()
    for key in ("hybrid", "uniform"):
        results[key] = dict.fromkeys(results[key], value)
    results["[red]a very long name of a further arm, more than fits[/red]"] = results["base"]
    text = printed(results, width=200)
    assert max(map(len, text.splitlines())) <= 80
    assert "[red]a very long" in text


@pytest.mark.parametrize(("value", "shown"), [(111_804_511.8, "1.1e+08"), (1.2e-5, "1.2e-05"), (1.2e15, "1.2e+15")])
def test_no_figure_is_cut_off(value: float, shown: str) -> None:
    results = evaluation()
    for metric in ("kl", "perplexity"):
        results["hybrid"][metric] = value
    [line] = [line for line in printed(results).splitlines() if line.strip().startswith("hybrid  ")]
    assert line.split()[1] == shown
    assert f" {shown} " in line[line.index("%") :]


def test_nothing_to_show() -> None:
    assert "nothing has been evaluated yet" in printed({})


def test_it_is_printed_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluation())
    output = capsys.readouterr()
    assert "hybrid" in output.out
    assert output.err == ""
