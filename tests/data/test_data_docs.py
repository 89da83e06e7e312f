"""docs/how-to/data.md tells the truth: its examples load, and what it lists exists."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from data.test_pictures_in_data import png
from radistill.data.examples import KEYS, example_from_row
from radistill.data.records import Record
from radistill.data.settings import DataSettings

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipes(block: str) -> None:
    TypeAdapter(DataSettings).validate_python(yaml.safe_load(block))


def test_every_kind_has_a_recipe() -> None:
    assert {yaml.safe_load(block)["kind"] for block in blocks("yaml")} == {"jsonl", "datasets", "reasoning-gym"}


def test_rows_of_data(tmp_path: Path) -> None:
    examples = [json.loads(line) for block in blocks("json") for line in block.splitlines()]
    assert {key for row in examples for key in row} == {*KEYS, "response", "images"}
    for image in ("photos/12.jpg", "before.png"):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).write_bytes(png())
    for row in examples:
        example_from_row(row, "a", "docs", tmp_path)


def test_the_files_are_described() -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.split("## What a run keeps")[1].split("All settings")[0]))
    row = {"id": "a", "text": "b", "tokens": [1, 2], "response_start": 1, "finished": True, "verifier": None}
    assert set(Record.from_row(row).to_row()) | {"messages", "tools", "response", "response_fields"} == described


def test_the_warnings_are_there() -> None:
    assert "Never train on `gsm_symbolic` where GSM8K is the measure." in PAGE
    assert "`codeio` executes code." in PAGE
