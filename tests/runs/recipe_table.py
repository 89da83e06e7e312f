"""Tables of every recipe field, made from the settings classes: the middle of docs/reference/recipes.md.

`python tests/runs/recipe_table.py` writes them there; a test fails if that was forgotten.
"""

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from radistill.runs.recipe import Recipe
from radistill.runs.recipe_errors import sections

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"
BEGIN = "<!-- fields: begin (made by tests/runs/recipe_table.py) -->"
END = "<!-- fields: end -->"

_NAMES: dict[Any, str] = {str: "text", Path: "path", bool: "true, false", int: "whole number", float: "number"}


def fields(section: type[BaseModel] = Recipe, path: str = "") -> Iterator[tuple[str, type[BaseModel], str, FieldInfo]]:
    """Every field: path of its section, the settings class that declares it, its own name, what is known of it."""
    for name, info in section.model_fields.items():
        yield path, section, name, info
    for name, info in section.model_fields.items():
        of_names = ".NAME" if get_origin(info.annotation) is dict else ""
        for below in sections(info.annotation).values():
            yield from fields(below, f"{path}.{name}{of_names}".lstrip("."))


def description(section: type[BaseModel], name: str, info: FieldInfo) -> str:
    """What a field means, as a sentence; "" if nothing says so. `kind` means the section that it picks."""
    text = info.description or (section.__doc__ if name == "kind" else "") or ""
    text = " ".join(text.split("\n\n")[0].split())
    return text and text[0].upper() + text[1:].removesuffix(".") + ("" if text.endswith("…") else ".")


def tables() -> str:
    """One Markdown table a section; what the kinds of a section share comes once."""
    rows: dict[tuple[str, type[BaseModel]], dict[str, str]] = {}
    for path, section, name, info in fields():
        row = f"| `{name}` | {_type(info)} | {_default(info)} | {description(section, name, info)} |"
        rows.setdefault((path, section), {})[name] = row
    text: list[str] = []
    written: dict[type[BaseModel], str] = {}
    for path in dict.fromkeys(path for path, _ in rows):
        kinds = {section: table for (where, section), table in rows.items() if where == path}
        shared = set.intersection(*(set(table.items()) for table in kinds.values())) if len(kinds) > 1 else set()
        known = {written[section] for section in kinds if section in written}
        if known:
            text.append(f"### `{path}`\n\nThe fields of `{known.pop()}`.\n")
            continue
        if shared:
            first = next(iter(kinds.values()))
            text.append(_table(f"### `{path}`, of every kind", [row for row in first.items() if row in shared]))
        for section, table in kinds.items():
            written[section] = path
            kind = f" of the kind `{section.model_fields['kind'].default}`" if "kind" in table else ""
            title = f"### `{path}`{kind}" if path else "### Top level"
            text.append(_table(title, [row for row in table.items() if row not in shared]))
    return "\n".join(text)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    head = "| field | value | default | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([f"{title}\n", head, *(row for _, row in rows)]) + "\n"


def _type(info: FieldInfo) -> str:
    before: list[Any] = [part for part in info.metadata if isinstance(part, BeforeValidator)]
    if before and info.annotation is str:
        try:
            before[0].func(object())  # it lists what it allows
        except ValueError as error:
            return ", ".join(f"`{name}`" for name in str(error).removeprefix("must be one of ").split(", "))
    return _words(info.annotation, _limits(info.metadata))


def _words(annotation: Any, limits: str = "") -> str:
    if annotation in _NAMES:
        return _NAMES[annotation] + limits
    if annotation is types.NoneType:
        return "`null`"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict and sections(annotation):
        return "section for each name"
    if kinds := sections(annotation):
        tagged = all("kind" in section.model_fields for section in kinds.values())
        text = "section, by `kind`: " + ", ".join(f"`{kind}`" for kind in kinds) if tagged else "section"
        return f"{text}, or `null`" if types.NoneType in arguments else text
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "mapping"
    if origin is list:
        return f"list, each a {_words(arguments[0])}"
    if origin is Annotated:
        inner = [part for extra in arguments[1:] for part in getattr(extra, "metadata", [extra])]
        return _words(arguments[0], _limits(inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument, limits) for argument in arguments)
    raise TypeError(f"the table has no words for {annotation}")


def _limits(metadata: Iterable[Any]) -> str:
    words = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
    found = [
        f"{words[type(part)][0]} {getattr(part, words[type(part)][1])}" for part in metadata if type(part) in words
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        changed = ", ".join(f"{name}: {given}" for name, given in value.model_dump(exclude_defaults=True).items())
        return f"`{kind}`{f' with `{changed}`' if changed else ''}" if kind else "its defaults"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{value}`"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{after}", encoding="utf-8")
