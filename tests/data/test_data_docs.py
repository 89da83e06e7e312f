"""docs/how-to/data.md tells the truth: its examples load, and its tables list the settings that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from radistill.data.examples import KEYS, example_from_row
from radistill.data.records import Record
from radistill.data.settings import (
    DataSettings,
    HubData,
    JsonlData,
    ReasoningGymData,
    ResponseSettings,
)

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
KINDS: dict[str, Any] = {"jsonl": JsonlData, "datasets": HubData, "reasoning-gym": ReasoningGymData}
COMMON = set.intersection(*(set(model.model_fields) for model in KINDS.values())) - {"kind"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def rows(header: str) -> list[list[str]]:
    """The cells of the tables with that header, one list a row."""
    found = []
    for table in PAGE.split(header)[1:]:
        for line in table.lstrip("\n").split("\n")[1:]:
            if not line.startswith("|"):
                break
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipes(block: str) -> None:
    TypeAdapter(DataSettings).validate_python(yaml.safe_load(block))


def test_every_kind_has_a_recipe() -> None:
    assert {yaml.safe_load(block)["kind"] for block in blocks("yaml")} == set(KINDS)


def test_rows_of_data() -> None:
    examples = [json.loads(line) for block in blocks("json") for line in block.splitlines()]
    assert {key for row in examples for key in row} == {*KEYS, "response"}
    for row in examples:
        example_from_row(row, "a", "docs")


def test_the_tables_list_all_settings_with_their_defaults() -> None:
    table = {key.strip("`"): default for key, default, _ in rows("| key | default | meaning |")}
    assert set(table) == COMMON | set(ResponseSettings.model_fields)
    for name, default in table.items():
        field = ResponseSettings.model_fields.get(name) or JsonlData.model_fields[name]
        if default:
            assert str(field.default) == default, name


def test_the_kinds_list_all_their_keys() -> None:
    table = {kind.strip("`"): set(re.findall(r"`(\w+)`", keys)) for kind, keys in rows("| kind | keys |")}
    assert table == {kind: set(model.model_fields) - COMMON - {"kind"} for kind, model in KINDS.items()}


def test_the_files_are_described() -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.split("## What a run keeps")[1].split("## All settings")[0]))
    row = {"id": "a", "text": "b", "tokens": [1, 2], "response_start": 1, "finished": True, "verifier": None}
    assert set(Record.from_row(row).to_row()) | {"messages", "tools", "response", "response_fields"} == described


def test_the_warnings_are_there() -> None:
    assert "Never train on `gsm_symbolic` where GSM8K is the measure." in PAGE
    assert "`codeio` executes code." in PAGE
