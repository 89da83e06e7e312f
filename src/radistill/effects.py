"""Which fields of settings count among what a result depends on: every one that does not say otherwise of itself."""

from typing import Any

from pydantic import BaseModel

NOT_COUNTED = object()
"""Marks a field (`Annotated[float, NOT_COUNTED]`) that changes no result, or whose effect is counted otherwise."""


def counted(settings: BaseModel, *without: str) -> dict[str, Any]:
    """The settings as plain data, without the fields that do not count and those named in `without`."""
    dumped = settings.model_dump(mode="json", exclude=set(without))
    for name, field in type(settings).model_fields.items():
        if NOT_COUNTED in field.metadata:
            dumped.pop(name, None)
        elif name in dumped and isinstance(value := getattr(settings, name), BaseModel):
            dumped[name] = counted(value)
    return dumped
