"""The recipe: the only input of a run. Every field has a type, a default where one makes sense, and a sentence."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from radistill.conversion.initialisation import INITIALISATIONS
from radistill.conversion.targets import TARGETS, TargetSettings
from radistill.diagnosis.objectives import OBJECTIVES
from radistill.diagnosis.selectors import SELECTORS, SelectorSettings
from radistill.distillation.align import AlignSettings
from radistill.distillation.data.settings import DataSettings
from radistill.distillation.distill_settings import DistillSettings
from radistill.errors import RadistillError
from radistill.evaluation.settings import EvaluateSettings
from radistill.files import write_text


def _kind(value: Any) -> Any:
    """`selector: bayes` is short for `selector: {kind: bayes}`."""
    return {"kind": value} if isinstance(value, str) else value


def _one_of(known: Sequence[str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in known:
            raise ValueError(f"must be one of {', '.join(sorted(known))}")
        return value

    return BeforeValidator(check)


Selector = Annotated[SelectorSettings, BeforeValidator(_kind)]
Target = Annotated[TargetSettings, BeforeValidator(_kind)]
Initialisation = Annotated[str, _one_of(list(INITIALISATIONS))]


class DiagnoseSettings(BaseModel):
    """Which attention layers go."""

    model_config = ConfigDict(extra="forbid")

    budget: int = Field(ge=1, description="attention layers to replace")
    selector: Selector = Field(default_factory=SELECTORS["bayes"], description="how they are chosen")
    objective: Annotated[str, _one_of(list(OBJECTIVES))] = Field(
        default="acceptance", description="what the search maximises"
    )
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")


class ConvertSettings(BaseModel):
    """What the replaced layers become."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    target: Target = Field(
        default_factory=lambda: TARGETS["granite-hybrid"].settings(), description="the student's architecture"
    )
    init: Initialisation = Field(default="zero", description="how the new blocks start")


class BaselineSettings(BaseModel):
    """A second hybrid, for comparison: the same budget, data and end-to-end tokens, other choices."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    selector: Selector = Field(default_factory=SELECTORS["uniform"], description="how its layers are chosen")
    target: Target = Field(
        default_factory=lambda: TARGETS["granite-hybrid"].settings(groups="heads"),
        description="its architecture; a per-head transfer needs one B/C group a head",
    )
    init: Initialisation = Field(default="transfer", description="how its new blocks start")
    align: bool = Field(default=False, description="whether its blocks are fitted layer by layer too")
    steps: int | None = Field(default=None, ge=0, description="end-to-end steps; the hybrid's own number if null")


class Recipe(BaseModel):
    """Everything that a run depends on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="the model to convert: hub id, folder, GGUF file or alias")
    teacher: str | None = Field(
        default=None, description="a larger teacher with the same tokenizer; null is self-distillation"
    )
    seed: int = Field(default=0, ge=0, description="of every random choice")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; fixed threads make runs repeatable")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of weights and activations")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is the GPU where there is one")
    trust_remote_code: bool = Field(default=False, description="run model code that a hub repository brings")
    data: DataSettings
    diagnose: DiagnoseSettings
    convert: ConvertSettings = Field(default_factory=ConvertSettings)
    align: AlignSettings | None = Field(default_factory=AlignSettings, description="null leaves the stage out")
    distill: DistillSettings | None = Field(default_factory=DistillSettings, description="null leaves the stage out")
    baseline: BaselineSettings | None = Field(default=None, description="null trains no baseline")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    def save(self, path: Path | str) -> None:
        """Write the whole recipe, defaults included, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `distill.steps=20`.

    Raises:
        RadistillError: naming the file, the field and what it may be.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RadistillError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise RadistillError(f"{path}: is a folder, not a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RadistillError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise RadistillError(f"{path}: a recipe is a mapping of fields such as `model: smollm2-135m`")
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RadistillError(f"{path}: {_explain(error)}") from None


def _override(data: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    if not equals or not all(field.split(".")):
        raise RadistillError(f"--set {override}: write it as field=value, for example distill.steps=20")
    *parents, last = field.split(".")
    node = data
    for parent in parents:
        child = node.get(parent)
        if isinstance(child, str):
            child = _kind(child)  # `selector: bayes` takes settings like its long form
        elif child is None:
            child = {}
        if not isinstance(child, dict):
            raise RadistillError(f"--set {override}: {parent} is {child!r}, which has no fields")
        node[parent] = child
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RadistillError(f"--set {override}: {text!r} is not a YAML value") from None


def _explain(error: ValidationError) -> str:
    """The first problem on one line: field, what is wrong, what was given, what is allowed."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    # Pydantic puts the chosen kind of a union between the field and its own fields; users do not write it there.
    fields, kinds = _path_and_kinds(location)
    name = ".".join(fields)
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _fields_at(fields[:-1], kinds)
        close = difflib.get_close_matches(fields[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{name}: unknown field; {hint}allowed: {', '.join(known)}{more}"
    if problem["type"] == "missing":
        return f"{name}: is required{more}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{name}: {message[0].lower() + message[1:]}{shown}{more}"


def _path_and_kinds(location: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split pydantic's location into the fields that a user writes and the kinds chosen on the way."""
    fields: list[str] = []
    kinds: dict[str, str] = {}
    model: Any = Recipe
    for part in location:
        choices = _choices(model)
        if len(choices) > 1 and part in choices:
            kinds[".".join(fields)] = part
            model = choices[part]
            continue
        fields.append(part)
        single = next(iter(choices.values()), None) if len(choices) == 1 else None
        info = getattr(single, "model_fields", {}).get(part)
        model = None if info is None else info.annotation
    return fields, kinds


def _choices(annotation: Any) -> dict[str, type[BaseModel]]:
    """The settings classes that an annotation admits, by their kind."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {str(kind.default) if kind else annotation.__name__: annotation}
    found: dict[str, type[BaseModel]] = {}
    for argument in get_args(annotation):
        found |= _choices(argument)
    return found


def _fields_at(fields: Sequence[str], kinds: dict[str, str]) -> list[str]:
    model: Any = Recipe
    for depth, field in enumerate(fields):
        choices = _choices(model.model_fields[field].annotation)
        kind = kinds.get(".".join(fields[: depth + 1]))
        if kind in choices:
            model = choices[kind]
        elif choices:
            model = next(iter(choices.values()))
        else:
            return []
    return sorted(model.model_fields)
