"""How numbers are written."""

import math

import pytest

from radistill.report.numbers import (
    bytes_,
    cache_mib,
    duration,
    layer_list,
    number,
    percent,
    significant,
    tick_labels,
    whole,
)


def plain(text: str) -> str:
    """`text` on the keyboard's characters."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.1374, "0.137"),
        (0.9996, "1.00"),
        (99.96, "100"),
        (1.0, "1.00"),
        (12.36, "12.4"),
        (10_240.4, "10,240"),
        (-0.5, "-0.500"),
        (0.00012, "0.000120"),
        (None, "not measured"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        ("0.3", "not measured"),
        (True, "not measured"),
    ],
)
def test_three_significant_digits(value: object, expected: str) -> None:
    assert plain(significant(value)) == expected


def test_powers_of_ten() -> None:
    times = "\N{MULTIPLICATION SIGN}"
    assert plain(significant(3.1e-7)) == f"3.10 {times} 10⁻⁷"
    assert plain(significant(-2.5e12)) == f"-2.50 {times} 10¹²"


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, True, "1", [1], {}, 10**400])
def test_what_is_no_number(value: object) -> None:
    assert number(value) is None


def test_units() -> None:
    assert plain(bytes_(512)) == "512 B"
    assert plain(bytes_(15_360)) == "15.0 KiB"
    assert plain(bytes_(1_474_560)) == "1.41 MiB"
    assert whole(23_040) == "23,040"
    assert plain(percent(0.8514)) == "85.1 %"
    assert plain(percent(-1 / 3, 0)) == "-33 %"
    assert cache_mib(23_040) == "720"  # 23,040 B x 32,768 tokens / 2**20
    assert cache_mib(None) == "not measured"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.25, "0.250 s"), (59.2, "59.2 s"), (251.3, "4 min 11 s"), (3599.7, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert plain(duration(seconds)) == expected


def test_axis_labels_share_their_decimals() -> None:
    assert tick_labels([0, 0.25, 0.5]) == ["0", "0.25", "0.50"]
    assert tick_labels([0, 20_000, 40_000]) == ["0", "20k", "40k"]
    assert tick_labels([0, 2_500_000]) == ["0", "2.5M"]


def test_layers_are_joined_into_runs() -> None:
    assert plain(layer_list([8, 3, 6, 7, 25])) == "3, 6-8, 25"
    assert plain(layer_list([0, 1])) == "0, 1"
    assert layer_list([]) == "none"
