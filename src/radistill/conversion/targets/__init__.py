"""Targets: the architectures that a student can have. One file each, registered here under its `kind`."""

from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter, ValidationError
from transformers import PreTrainedConfig

from radistill.conversion.targets.cut import Cut
from radistill.conversion.targets.granite_hybrid import GraniteHybrid
from radistill.conversion.targets.interface import Target as Target
from radistill.conversion.targets.interface import TargetSettings as TargetSettings
from radistill.conversion.targets.massv import Massv
from radistill.conversion.targets.plain_gguf import FORMATS, GGUFFormat
from radistill.conversion.targets.qwen3_5 import Qwen35
from radistill.errors import RadistillError
from radistill.mixers.interface import Initialisation, Mixer
from radistill.models.architectures import ARCHITECTURES

TARGETS: dict[str, Target] = {}
DEFAULT = "granite-hybrid"


def register_target(target: Target) -> None:
    """Make a target known under its kind, and its architecture to all that takes models apart."""
    TARGETS[target.kind] = target
    if target.architecture is not None:
        ARCHITECTURES.update(dict.fromkeys(target.model_types, target.architecture))


register_target(GraniteHybrid())
register_target(Qwen35())
register_target(Cut())
register_target(Massv())


def validate_target(value: Any) -> TargetSettings:
    """Settings of a target from its name, from a mapping, or as they are.

    A mapping without `kind` is of the target that knows most of its fields; of two, of the one registered first.

    Raises:
        ValidationError: for an unknown name or field, or a value that is not allowed.
    """
    if isinstance(value, str):
        value = {"kind": value}
    elif isinstance(value, dict):
        value = {"kind": _kind_of(value), **value}
    kinds: Any = Union[tuple(target.settings for target in TARGETS.values())]  # noqa: UP007
    if len(TARGETS) > 1:
        kinds = Annotated[kinds, Field(discriminator="kind")]
    settings: TargetSettings = TypeAdapter(kinds).validate_python(value)
    return settings


def _kind_of(fields: dict[str, Any]) -> str:
    return max(TARGETS, key=lambda kind: len(fields.keys() & TARGETS[kind].settings.model_fields.keys()))


def target_settings(target: TargetSettings | dict[str, Any] | str) -> TargetSettings:
    """As `validate_target`.

    Raises:
        RadistillError: for an unknown name or field, or a value that is not allowed.
    """
    kind = target.get("kind", _kind_of(target)) if isinstance(target, dict) else getattr(target, "kind", target)
    if kind not in list(TARGETS):
        raise RadistillError(f"target: {kind!r} is unknown; choose from {', '.join(TARGETS)}")
    try:
        return validate_target(target)
    except ValidationError as error:
        problems = [[part for part in problem["loc"] if part != kind] for problem in error.errors()]
        field, value = problems[0][0], error.errors()[0]["input"]
        # A field with alternatives has one message for each of them.
        wanted = " or ".join(
            problem["msg"] for problem, place in zip(error.errors(), problems, strict=True) if place[0] == field
        )
        raise RadistillError(f"target.{field}: {wanted} (got {value!r})") from None


def obstacles_of(config: PreTrainedConfig) -> tuple[str | None, dict[str, list[str]]]:
    """The first target that can hold a model, if any, and for every other what stands in its way.

    Targets that put nothing in place of a layer make no hybrids, and are left out.
    """
    obstacles = {kind: target.check(config) for kind, target in TARGETS.items() if target.mixers}
    first = next((kind for kind, found in obstacles.items() if not found), None)
    return first, {kind: found for kind, found in obstacles.items() if found}


def target_for(
    config: PreTrainedConfig, source: str, named: TargetSettings | dict[str, Any] | str | None = None
) -> TargetSettings:
    """The target that was `named` (see `target_settings`) or, if none was, the first that can hold a model.

    Raises:
        RadistillError: if none can, with what stands in the way of each; as `target_settings`.
    """
    if named is not None:
        return target_settings(named)
    first, obstacles = obstacles_of(config)
    if first is None:
        reasons = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in obstacles.items())
        raise RadistillError(f"{source}: no target can hold this model ({reasons})")
    return target_settings(first)


def mixer_of(target: TargetSettings | dict[str, Any] | str = DEFAULT) -> Mixer:
    """The kind of block that a target puts in place of attention."""
    settings = target_settings(target)
    return TARGETS[settings.kind].mixer(settings)


def find_initialisation(name: str, target: TargetSettings | dict[str, Any] | str = DEFAULT) -> Initialisation:
    """The initialisation called `name` of the blocks that a target puts in place of attention.

    Raises:
        RadistillError: listing the known names.
    """
    return mixer_of(target).initialisation(name)


def target_of(config: PreTrainedConfig) -> Target | None:
    """The target whose students have this config; None for a model that cannot be a student."""
    return next((target for target in TARGETS.values() if config.model_type in target.model_types), None)


def gguf_formats() -> dict[str, GGUFFormat]:
    """How llama.cpp wants the models that it can run, by transformers' model type."""
    students = {
        name: target.gguf for target in TARGETS.values() if target.gguf is not None for name in target.model_types
    }
    return students | FORMATS
