"""What the settings accept, and that every field explains itself."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from radistill.data.settings import DataSettings, HubData, JsonlData, ReasoningGymData, ResponseSettings

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSettings)


def test_the_kind_decides() -> None:
    assert isinstance(ADAPTER.validate_python({"kind": "jsonl", "path": "a.jsonl"}), JsonlData)
    assert isinstance(ADAPTER.validate_python({"kind": "datasets", "id": "a/b"}), HubData)
    assert isinstance(ADAPTER.validate_python({"kind": "reasoning-gym"}), ReasoningGymData)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["gsm_symbolic"], {"gsm_symbolic": {}}),
        (["gsm_symbolic", {"codeio": {"difficulty": 2}}], {"gsm_symbolic": {}, "codeio": {"difficulty": 2}}),
        ({"codeio": {"difficulty": 2}}, {"codeio": {"difficulty": 2}}),
        ([{"codeio": None}], {"codeio": {}}),
    ],
)
def test_tasks(tasks: Any, expected: dict[str, Any]) -> None:
    assert ADAPTER.validate_python({"kind": "reasoning-gym", "tasks": tasks}).tasks == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Unable to extract tag using discriminator 'kind'"),
        ({"kind": "csv"}, "'jsonl', 'datasets', 'reasoning-gym'"),
        ({"kind": "jsonl"}, "path"),
        ({"kind": "jsonl", "path": "a", "margin": 1}, "margin\n  Extra inputs are not permitted"),
        ({"kind": "jsonl", "path": "a", "train": 0}, "train\n  Input should be greater than or equal to 1"),
        ({"kind": "jsonl", "path": "a", "heldout": "many"}, "heldout\n  Input should be a valid integer"),
        ({"kind": "jsonl", "path": "a", "responses": {"source": "model"}}, "'auto', 'teacher' or 'data'"),
        ({"kind": "jsonl", "path": "a", "responses": {"temperature": -1}}, "responses.temperature"),
        ({"kind": "jsonl", "path": "a", "responses": {"temperature": float("inf")}}, "responses.temperature"),
        ({"kind": "jsonl", "path": "a", "responses": {"top_p": 0}}, "responses.top_p"),
        ({"kind": "datasets", "id": ""}, "id\n  String should have at least 1 character"),
        ({"kind": "datasets", "id": "a", "columns": {"question": "q"}}, "'messages', 'tools', 'prompt', 'response'"),
        ({"kind": "reasoning-gym", "tasks": []}, "at least 1 item"),
        ({"kind": "reasoning-gym", "tasks": "gsm_symbolic"}, "valid dictionary"),
        ({"kind": "reasoning-gym", "tasks": [3]}, "a task is a name, not 3"),
        ({"kind": "reasoning-gym", "tasks": ["a", "a"]}, "a is listed twice"),
        ({"kind": "reasoning-gym", "tasks": {"a": {"seed": 1}}}, "a: seed follow from"),
        ({"kind": "reasoning-gym", "tasks": [["a"]]}, "a task is a name"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("model", [JsonlData, HubData, ReasoningGymData, ResponseSettings])
def test_every_field_has_a_description(model: Any) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_settings_survive_json() -> None:
    settings = ADAPTER.validate_python({"kind": "jsonl", "path": "a/b.jsonl", "responses": {"temperature": 0.7}})
    assert ADAPTER.validate_json(ADAPTER.dump_json(settings)) == settings
