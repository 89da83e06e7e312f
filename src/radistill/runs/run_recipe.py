"""The recipe of a run, as plain data: for whoever tells of a run, and need not wait for the classes that train one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from radistill.errors import RadistillError
from radistill.files import read_text, read_yaml
from radistill.runs.contents import Content, mapping
from radistill.runs.folder import MAIN, MOST_RECIPE_BYTES

TRAININGS = ("align", "distill", "finetune")


@dataclass(frozen=True)
class HybridRecipe:
    """What a recipe says of one hybrid, as far as somebody is told of it.

    Attributes:
        name: its key in evaluation.json.
        teacher: source of its teacher; None is self-distillation.
        trainings: those of `align`, `distill` and `finetune` that it has.
    """

    name: str
    teacher: str | None
    trainings: frozenset[str]


@dataclass(frozen=True)
class RunRecipe:
    """A recipe that is known to be one.

    Attributes:
        fields: all fields, defaults included, as `Recipe.save` writes them.
        text: the same as YAML.
    """

    fields: dict[str, Any]
    text: str

    @property
    def target(self) -> dict[str, Any]:
        """Settings of the main hybrid's target."""
        target: dict[str, Any] = self.fields["convert"]["target"]
        return target

    @property
    def keep(self) -> dict[str, Any]:
        """The promise that the search has to hold; empty where there is none."""
        return self.fields["diagnose"]["keep"] or {}

    @property
    def own_data(self) -> list[str]:
        """The trainings that do not read the recipe's documents but their own."""
        return [name for name in TRAININGS if (self.fields[name] or {}).get("data")]

    @property
    def hybrids(self) -> list[HybridRecipe]:
        """The main hybrid, and each arm, with what arms leave out; as `Recipe.hybrids`."""
        main = HybridRecipe(MAIN, self.fields["teacher"], _given(self.fields))
        return [main, *(self._arm(main, name, arm) for name, arm in self.fields["arms"].items())]

    def _arm(self, main: HybridRecipe, name: str, arm: dict[str, Any]) -> HybridRecipe:
        itself = arm["teacher"] == self.fields["model"]
        as_main = {training for training in main.trainings if arm[training] is not None}
        return HybridRecipe(name, None if itself else arm["teacher"] or main.teacher, _given(arm, empty={}) | as_main)

    def differences(self, arm: str) -> dict[str, Any]:
        """What of an arm is not as in the main hybrid."""
        fields: dict[str, Any] = self.fields["arms"][arm]
        return {name: value for name, value in fields.items() if value != ({} if name in TRAININGS else None)}


def _given(fields: dict[str, Any], empty: dict[str, Any] | None = None) -> frozenset[str]:
    return frozenset(name for name in TRAININGS if fields[name] is not None and fields[name] != empty)


class _Keep(Content):
    keep: dict[str, Any] | None


class _Target(Content):
    kind: str


class _Convert(Content):
    target: _Target


class _Trainings(Content):
    teacher: str | None
    align: dict[str, Any] | None
    distill: dict[str, Any] | None
    finetune: dict[str, Any] | None


class _Written(_Trainings):
    """What `RunRecipe` looks at. There are no defaults, as a run has written all of them."""

    model: str
    diagnose: _Keep
    convert: _Convert
    arms: dict[str, _Trainings]


def read_run_recipe(path: Path, record: Mapping[str, Any]) -> RunRecipe:
    """What the steps on record were made with, and recipe.yaml for the rest.

    Where every section is on record as it stands in the file, steps were made with it, so it is a recipe. What was
    written or edited by hand is checked as any recipe is.

    Args:
        path: recipe.yaml.
        record: content of run.json.

    Raises:
        RadistillError: naming the file, the field and what it may be.
    """
    text = read_text(path, most_bytes=MOST_RECIPE_BYTES)
    fields = read_yaml(text, str(path))
    if _is_on_record(fields, record):
        return RunRecipe(fields, text)
    # Not above: these import torch, which takes seconds.
    from radistill.runs.recipe import Recipe, load_recipe

    recipe = made = load_recipe(path)
    try:
        merged = Recipe.model_validate(_made_with(recipe.model_dump(mode="json"), record))
        made = merged if merged.hybrids else recipe
    except (ValidationError, RadistillError):  # steps of several recipes need not make one
        pass
    text = text if made == recipe else made.to_yaml()
    fields = made.model_dump(mode="json")
    fields["convert"]["target"] = made.target.model_dump(mode="json")
    return RunRecipe(fields, text)


def _is_on_record(fields: Any, record: Mapping[str, Any]) -> bool:
    try:
        _Written.model_validate(fields, strict=True)
    except ValidationError:
        return False
    nothing: dict[str, Any] = {name: {} if name == "arms" else None for name in fields}
    nothing["arms"] = dict.fromkeys(fields["arms"])
    return fields == _made_with(fields, record) == _made_with(nothing, record)


def _made_with(fields: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe, with those that steps were made with in their place. Arms that are not there stay away."""
    made = {**fields, "arms": dict(fields["arms"])}
    for step in record.get("stages", {}).values():
        sections = dict(step.get("recipe", {}))
        arms = mapping(sections.pop("arms", None))
        made["arms"] |= {name: arm for name, arm in arms.items() if name in made["arms"]}
        made |= sections
    return made
