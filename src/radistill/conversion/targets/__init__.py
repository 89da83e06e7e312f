"""Targets: the architectures that a student can have. One file each, registered here under its `kind`."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from pydantic import ValidationError
from transformers import PreTrainedConfig, PreTrainedModel

from radistill.conversion.geometry import Mamba2Geometry
from radistill.conversion.targets.granite_hybrid import GraniteHybrid, GraniteHybridSettings
from radistill.errors import RadistillError
from radistill.models.loading import Model

# A recipe's `target`, told apart by `kind`. With a second target this becomes a pydantic union discriminated by it.
TargetSettings: TypeAlias = GraniteHybridSettings


class Target(Protocol):
    """An architecture that holds the source's weights as they are and can replace attention layer by layer."""

    settings: type[TargetSettings]

    def check(self, config: PreTrainedConfig) -> list[str]:
        """Features of a source model that this architecture cannot hold, by name; empty if it can hold it."""

    def geometry(self, config: PreTrainedConfig, settings: TargetSettings) -> Mamba2Geometry:
        """Shape of the new blocks for this source.

        Raises:
            RadistillError: if the settings do not fit the source.
        """

    def build(
        self, model: Model, replace: Sequence[int], settings: TargetSettings, *, share: bool = False
    ) -> PreTrainedModel:
        """Build the student: weights copied from the source, the blocks that replace attention filled with NaN.

        Args:
            model: the source.
            replace: layers whose attention is replaced, sorted.
            settings: this target's settings.
            share: let the student's tensors be the source's own wherever nothing has to be joined. Saves memory for a
                comparison; the result must not be trained.
        """


TARGETS: dict[str, Target] = {"granite-hybrid": GraniteHybrid()}


def target_settings(target: TargetSettings | dict[str, Any] | str) -> TargetSettings:
    """Settings of a target from its name, from a mapping with `kind`, or as they are.

    Raises:
        RadistillError: for an unknown name or field, or a value that is not allowed.
    """
    if isinstance(target, TargetSettings):
        return target
    values = {"kind": target} if isinstance(target, str) else dict(target)
    kind = values.get("kind")
    if kind not in TARGETS:
        raise RadistillError(f"target: {kind!r} is unknown; choose from {', '.join(TARGETS)}")
    try:
        return TARGETS[kind].settings.model_validate(values)
    except ValidationError as error:
        field, value = error.errors()[0]["loc"][0], error.errors()[0]["input"]
        # A field with alternatives has one message for each of them.
        wanted = " or ".join(problem["msg"] for problem in error.errors() if problem["loc"][0] == field)
        raise RadistillError(f"target.{field}: {wanted} (got {value!r})") from None


__all__ = ["TARGETS", "GraniteHybridSettings", "Target", "TargetSettings", "target_settings"]
