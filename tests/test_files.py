"""The readers of JSON, JSON lines and YAML: what is damaged or absurd ends in one line that names the place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from radistill.errors import RadistillError
from radistill.files import read_json, read_kept, read_rows, read_text, read_yaml, sealed, unsealed, write_kept


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(RadistillError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON (Expecting value: line 1 column 1"),
        ('{"a": 1,\n "b": }', "line 2 column 7"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested deeper than 100 levels"),
        ("9" * 5000, "a number of 5000 digits"),
        ("[1e999]", "1e999 is no finite number"),
        ("[NaN]", "NaN is no finite number"),
        ("-Infinity", "-Infinity is no finite number"),
        ('{"a": 1, "a": 1}', "a is given twice"),
        ('{"b": [{"a": 1, "c": 2, "a": 3}]}', "a is given twice"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\udc00": 1}', "half a surrogate pair"),
        ("\0", "not valid JSON"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    line = refusal(lambda: read_json(path, way_out="; remove it"))
    assert line.startswith(f"{path}: not valid JSON (")
    assert message in line
    assert line.endswith("; remove it")
    path.write_text(f"1\n\n{text}x\n")
    assert refusal(lambda: list(read_rows(path))).startswith(f"{path}, line 3: not valid JSON")


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for value in ["[" * 3, "\N{GRINNING FACE}", 10**299, 1e-300, {"a": {"a": [1]}}, "9" * 5000, [[[]]] * 200]:
        path.write_text(json.dumps(value))
        assert read_json(path) == value
    path.write_text("\ufeff[1]")
    assert read_json(path) == [1]
    path.write_text("[0.0, Infinity]")  # as in the config of a Mamba-2 model
    assert read_json(path, finite=False) == [0.0, float("inf")]
    path.write_text("[NaN]")
    assert "NaN" in refusal(lambda: read_json(path, finite=False))
    path.write_text('{"a": "x\u2028y"}\r\n\n  \n[2]')
    assert list(read_rows(path)) == [(1, {"a": "x\u2028y"}), (4, [2])]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as handle:
        handle.truncate(2**40)  # a hole: it takes no room
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in {
        "none": "no such file",
        "binary/below": "no such file",
        "pipe": "is a device, not a file",
        ".": "is a folder, not a file",
        "large": "has 1,099,511,627,776 bytes, and at most",
        "x" * 300: "cannot be read (File name too long)",
        "a\0b": "cannot be read (embedded null byte)",
        "binary": "not UTF-8 text (invalid start byte at byte 0)",
    }.items():
        for read in (read_text, read_json, lambda path: list(read_rows(path))):
            line = refusal(lambda name=name, read=read: read(tmp_path / name))  # type: ignore[misc]
            assert message in line, line


def test_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as handle:
        handle.truncate(2**31)
    assert refusal(lambda: list(read_rows(path))) == f"{path}, line 1: has more than 64 MiB"


class Kind(BaseModel):
    steps: list[int]
    share: float = 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"steps": 7}, "steps: Input should be a valid array"),
        ({"steps": ["7"]}, "steps.0: Input should be a valid integer"),
        ({"steps": [True]}, "steps.0: Input should be a valid integer"),
        ({"steps": [1.0]}, "steps.0: Input should be a valid integer"),
        ({"steps": [], "share": "0.5"}, "share: Input should be a valid number"),
        ({}, "steps: Field required"),
        ([], "Input should be an object"),
    ],
)
def test_a_value_of_another_type(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    assert refusal(lambda: read_json(path, Kind)) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "x, line 2: not valid YAML (aliases such as *name are not read"),
        ("a: &a [*a]", "aliases"),
        ("a: {<<: [&b {x: 1}, *b]}", "aliases"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: not valid YAML (c is given twice)"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("[" * 5000, "nested deeper than 100 levels"),
        ("[" * 120 + "]" * 120, "nested deeper than 100 levels"),
        ('!!int ""', "not valid YAML"),
        ("!!timestamp 2001-99-99", "not valid YAML"),
        ("\0", "not valid YAML (unacceptable character"),
        ("!!python/name:os.system", "not valid YAML (could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    assert message in refusal(lambda: read_yaml(text, "x"))


def test_a_bomb_is_refused_at_its_first_alias() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "line 2: not valid YAML (aliases" in refusal(lambda: read_yaml("\n".join(lines), "x"))


def test_yaml_that_is_read() -> None:
    assert read_yaml("{a: 2001-99-99, b: 2001-01-01, c: 1e-4, d: 0x10, e: 1E5, f: .inf}", "x") == {
        "a": "2001-99-99",
        "b": "2001-01-01",
        "c": 1e-4,
        "d": 16,
        "e": 1e5,
        "f": float("inf"),
    }


def test_what_is_kept_is_whole_or_not_there(tmp_path: Path) -> None:
    path, value = tmp_path / "kept.json", {"10": [1, 2.5, None], "9": "\N{SNOWMAN}"}
    assert read_kept(path, "key") is None
    write_kept(path, "key", {10: (1, 2.5, None), 9: "\N{SNOWMAN}"})
    assert read_kept(path, "key") == value
    assert read_kept(path, "other") is None
    whole = path.read_text()
    for damaged in [whole.replace("2.5", "2.6"), whole.replace('"9"', '"8"'), whole[:-3], "[]", "3", '{"key": "key"}']:
        path.write_text(damaged)
        assert read_kept(path, "key") is None
    assert unsealed(sealed("a", 1)) == {"a": 1}
