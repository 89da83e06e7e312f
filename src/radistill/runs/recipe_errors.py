"""From pydantic's complaints to one line that names a field as users write it, what is wrong, and what is allowed."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from radistill.conversion.targets import TARGETS, TargetSettings
from radistill.files import shortened


def explain(error: ValidationError, recipe: type[BaseModel]) -> str:
    """The most telling problem of `error`, raised by the model `recipe`, on one line."""
    problems = error.errors()
    # A misspelt field often leaves a required one missing; the misspelling says more.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    paths = [".".join(_place(problem["loc"], recipe)[0]) for problem in problems]
    path = paths[problems.index(first)]
    name, field = shortened(path), path.rpartition(".")[2]
    more = f" (and {len({*paths} - {path})} more)" if {*paths} - {path} else ""
    kind, parent = first["type"], _place(first["loc"][:-1], recipe)[1]
    if kind == "extra_forbidden":
        known = sorted(parent.model_fields)
        return f"{name}: unknown field; {_close(field, known)}allowed: {', '.join(known)}{more}"
    if kind == "missing":
        return f"{name}: is required{more}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        known = sorted(sections(parent.model_fields[field].annotation))
        if kind == "union_tag_not_found":
            return f"{name}.kind: is required; choose one of {', '.join(known)}{more}"
        tag = shortened(str(first["ctx"]["tag"]))
        return f"{name}: {tag!r} is unknown; {_close(tag, known)}choose one of {', '.join(known)}{more}"
    # A field that can be of several types has one problem for each of them.
    alternatives = [_wrong(problem) for problem, of in zip(problems, paths, strict=True) if of == path]
    wrong = " or ".join([alternatives[0], *(other.removeprefix("must be ") for other in alternatives[1:])])
    return f"{name}: {wrong}{_given(first)}{more}"


def sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The settings classes that a field admits, by their kind; empty if it has no fields of its own."""
    if annotation is TargetSettings:
        return {kind: target.settings for kind, target in TARGETS.items()}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {str(kind.default) if kind else annotation.__name__: annotation}
    found: dict[str, type[BaseModel]] = {}
    for argument in get_args(annotation):
        found |= sections(argument)
    return found


def has_fields(path: Sequence[str], recipe: type[BaseModel]) -> bool:
    """Whether the field at `path` is a section, such as `diagnose.selector`, in one of its kinds at least."""
    candidates = [recipe]
    of_a_mapping = False
    for field in path:
        if of_a_mapping:
            of_a_mapping = False
            continue
        annotations = [model.model_fields[field].annotation for model in candidates if field in model.model_fields]
        candidates = [model for annotation in annotations for model in sections(annotation).values()]
        of_a_mapping = any(map(_is_mapping, annotations))
    return bool(candidates)


def _place(location: Sequence[int | str], recipe: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The path as users write it, and the last settings class on it.

    Pydantic puts kinds of sections and members of type unions into it too.
    """
    fields: list[str] = []
    choices: dict[str, type[BaseModel]] = {}
    section, is_key = recipe, False
    for part in map(str, location):
        if is_key:  # of a mapping of sections
            fields.append(part)
            is_key = False
            continue
        if choices:  # one of several kinds
            section, choices = choices[part], {}
            continue
        fields.append(part)
        if part not in section.model_fields:
            continue
        annotation = section.model_fields[part].annotation
        choices, is_mapping = sections(annotation), _is_mapping(annotation)
        if not choices and not is_mapping:
            break  # what follows are types
        is_key = bool(choices) and is_mapping
        if len(choices) == 1:
            section, choices = next(iter(choices.values())), {}
    return [field for field in fields if field != "[key]"], section


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(_is_mapping(argument) for argument in get_args(annotation))


def _wrong(problem: Any) -> str:
    limits = problem.get("ctx", {})
    match problem["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a mapping of fields"
        case "list_type":
            return "must be a list"
        case "string_too_short":
            return "must not be empty"
        case "too_short":
            return f"must have at least {limits['min_length']} entry"
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing":
            return "must be a number"
        case "finite_number":
            return "must be a finite number"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "string_type" | "path_type":
            return "must be text"
        case "greater_than_equal":
            return f"must be at least {_number(limits['ge'])}"
        case "greater_than":
            return f"must be above {_number(limits['gt'])}"
        case "less_than_equal":
            return f"must be at most {_number(limits['le'])}"
        case "less_than":
            return f"must be below {_number(limits['lt'])}"
        case "literal_error":
            return f"must be {limits['expected']}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _number(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _given(problem: Any) -> str:
    given = problem["input"]
    if problem["type"] in ("string_too_short", "too_short", "address"):
        return ""
    if given is None or isinstance(given, bool):
        return f", not {'null' if given is None else str(given).lower()}"
    return f", not {shortened(repr(given))}" if isinstance(given, str | int | float) else ""


def _close(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
