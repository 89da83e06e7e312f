"""The plan: which layers are replaced, why, and how that was found. The file between diagnosis and conversion."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from radistill.errors import RadistillError
from radistill.files import read_json, write_json

if TYPE_CHECKING:  # plans are read and shown without torch, which takes seconds to import
    from radistill.models.anatomy import Anatomy

By = Literal["redundancy", "replaceability"]
DRAFTS = {"redundancy": "without their attention", "replaceability": "with fitted blocks in their place"}
"""What the judged draft does with the layers of a plan, by what they were judged by."""


def draft_of(by: By, components: Sequence[str]) -> str:
    """The same, where not only attention may go of a layer."""
    return DRAFTS[by] if len(components) == 1 else "without them"


class SearchStep(BaseModel, extra="forbid", allow_inf_nan=False):
    """One set that a search judged."""

    trial: int = Field(ge=0)
    layers: list[int]
    value: float


class Alternative(BaseModel, extra="forbid"):
    """What another selector found in the same search."""

    selector: dict[str, Any]
    replace: list[int]
    value: float
    acceptance_rate: float
    mean_accepted_length: dict[int, float]
    kl: float
    forward_tokens: int
    seconds: float


class Plan(BaseModel, extra="forbid", protected_namespaces=(), allow_inf_nan=False):
    """Which attention layers of a model are replaced, and the evidence for it."""

    version: Literal[1] = 1
    model: str = Field(description="what the user asked for: hub id, folder, file or alias")
    model_fingerprint: str = Field(description="SHA-256 over the model's config and weights")
    num_layers: int = Field(ge=1)
    ssm_layers: list[int] = Field(default=[], description="layers that were state-space layers before")
    replace: list[int] = Field(description="layers whose attention is replaced, or goes with all of the layer; sorted")
    by: By = Field(
        default="redundancy",
        description="whether the judged draft skips the attention, or has fitted blocks in its place",
    )
    components: list[Literal["attention", "mlp"]] = Field(
        default=["attention"], min_length=1, description="what goes of each of these layers"
    )
    scores: dict[int, float] | None = Field(description="what the search thought of each layer; larger goes sooner")
    score_kind: str | None = Field(description="what a score measures, in words")
    objective: dict[str, int | float | str | dict[str, Any]] = Field(
        description="name and value of what was maximised, and what it was computed from"
    )
    acceptance_rate: float = Field(ge=0, le=1, description="share of the draft's tokens that are accepted")
    sampled_acceptance: float | None = Field(
        default=None, ge=0, le=1, description="expected acceptance where both sample at temperature 1"
    )
    mean_accepted_length: dict[Annotated[int, Field(ge=1)], float] = Field(
        description="accepted tokens a round, by draft length"
    )
    kl: float = Field(description="KL(model || draft) on the calibration responses, nats a token")
    selector: dict[str, Any] = Field(description="name and settings of the selector")
    search: list[SearchStep]
    alternatives: list[Alternative] = Field(default=[], description="what other selectors found, the best first")
    seconds: float = Field(ge=0)
    forward_tokens: int = Field(ge=0, description="calibration tokens through the whole model that the search spent")
    calibration_hash: str
    seed: int = Field(ge=0)
    versions: dict[str, str]

    @field_validator("replace")
    @classmethod
    def _sorted_and_unique(cls, layers: list[int]) -> list[int]:
        if layers != sorted(set(layers)):
            raise ValueError("must be sorted and without repeats")
        return layers

    @field_validator("objective")
    @classmethod
    def _name_and_value(cls, objective: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(objective.get("name"), str) or not isinstance(objective.get("value"), float | int):
            raise ValueError("must have a name, which is a text, and a value, which is a number")
        return objective

    @field_validator("mean_accepted_length")
    @classmethod
    def _no_more_than_drafted(cls, lengths: dict[int, float]) -> dict[int, float]:
        for length, mean in lengths.items():
            if not 0 <= mean <= length:
                raise ValueError(f"is {mean:g} at draft length {length}, but must be from 0 to {length}")
        return lengths

    @model_validator(mode="after")
    def _layers_exist(self) -> "Plan":
        lists = {"replace": self.replace, "ssm_layers": self.ssm_layers, "scores": list(self.scores or {})}
        lists |= {f"search[{number}].layers": step.layers for number, step in enumerate(self.search)}
        for name, layers in lists.items():
            for index, layer in enumerate(layers):
                if not 0 <= layer < self.num_layers:
                    entry = name if name == "scores" else f"{name}[{index}]"
                    raise ValueError(f"{entry} is {layer}, but this model has layers 0 to {self.num_layers - 1}")
            if len(set(layers)) < len(layers):
                raise ValueError(f"{name} names a layer twice")
        return self

    @property
    def whole_layers(self) -> bool:
        """Whether the layers go altogether."""
        return len(self.components) > 1

    @property
    def draft(self) -> str:
        """What the judged draft does with the layers."""
        return draft_of(self.by, self.components)

    def save(self, path: Path | str) -> None:
        """Write the plan as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> "Plan":
        """Read and validate a plan.

        Raises:
            RadistillError: naming the file and the field.
        """
        return read_json(path, cls, way_out="; `radistill diagnose` makes a plan")

    def check(self, anatomy: "Anatomy", name: str = "plan.json") -> None:
        """Check that the plan fits a model.

        Raises:
            RadistillError: naming the entry that does not fit.
        """
        if self.num_layers != anatomy.num_layers:
            raise RadistillError(
                f"{name}: made for a model of {self.num_layers} layers, but this model has {anatomy.num_layers}"
            )
        for index, layer in enumerate(self.replace):
            if not 0 <= layer < anatomy.num_layers:
                raise RadistillError(
                    f"{name}: replace[{index}] is {layer}, but this model has layers 0 to {anatomy.num_layers - 1}"
                )
            if layer not in anatomy.attention_layers:
                raise RadistillError(f"{name}: replace[{index}] is {layer}, but layer {layer} has no attention")
