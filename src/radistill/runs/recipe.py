"""The recipe: the only input of a run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from transformers import PreTrainedConfig

from radistill.conversion.targets import (
    DEFAULT,
    TARGETS,
    TargetSettings,
    find_initialisation,
    target_for,
    target_settings,
)
from radistill.data.settings import DataSettings
from radistill.data.sources import settings_of, shares
from radistill.diagnosis.diagnose import contradiction
from radistill.diagnosis.objectives import needs_retrieval
from radistill.errors import RadistillError
from radistill.files import read_text, read_yaml, shortened, write_text, yaml_of
from radistill.models.sources import as_path
from radistill.runs.arms import Arm, ArmSettings, arm_of
from radistill.runs.folder import MAIN, MOST_RECIPE_BYTES
from radistill.runs.recipe_errors import explain, has_fields
from radistill.runs.sections import (
    STAGES_THAT_READ,
    AlignStage,
    ConnectStage,
    ConvertSettings,
    DiagnoseSettings,
    DistillStage,
    EvaluateSettings,
    FinetuneStage,
    kind_of,
)
from radistill.statistics import ratio_interval


def _arm_name(name: str) -> str:
    """Names of arms are keys of evaluation.json and folders."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,39}", name) or name.endswith("_start"):
        raise ValueError("must be up to 40 of a-z, 0-9, _, - and ., and not end in _start")
    if name in ("base", "draft", MAIN, "samples"):
        raise ValueError("must be a name that not every run has already")
    return name


class Recipe(BaseModel, extra="forbid", protected_namespaces=()):
    """Everything that a run depends on."""

    model: Annotated[str, AfterValidator(as_path)] = Field(
        min_length=1, description="the model to convert: hub id, folder, GGUF file or alias"
    )
    teacher: Annotated[str, AfterValidator(as_path)] | None = Field(
        default=None, description="a larger teacher with the same tokenizer; null is self-distillation"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of every random choice")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads; fixed threads make runs repeatable"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of weights and activations")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is the GPU where there is one")
    trust_remote_code: bool = Field(default=False, description="run model code that a hub repository brings")
    data: DataSettings = Field(description="what the models read: its source, how much of it, whose responses")
    diagnose: DiagnoseSettings = Field(description="which attention layers go")
    convert: ConvertSettings = Field(default_factory=ConvertSettings, description="what they become")
    align: AlignStage | None = Field(
        default_factory=AlignStage, description="the fit of each new block by itself; null leaves it out"
    )
    connect: ConnectStage | None = Field(
        default=None, description="with the target `massv`, what its connector learns first; null leaves it out"
    )
    distill: DistillStage | None = Field(
        default_factory=DistillStage, description="end-to-end training; null leaves it out"
    )
    finetune: FinetuneStage | None = Field(
        default=None, description="next-token training after distillation; null leaves it out"
    )
    arms: dict[Annotated[str, AfterValidator(_arm_name)], ArmSettings] = Field(
        default={}, description="hybrids to compare with, by names of your choice"
    )
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings, description="what is measured in the end")

    @model_validator(mode="after")
    def _without_blocks(self) -> "Recipe":
        """Where layers go altogether, no block can be fitted: what the recipe does not say follows from that."""
        if TARGETS[self.target.kind].mixers:
            return self
        if "by" not in self.diagnose.model_fields_set:
            self.diagnose.by = "redundancy"
        if "align" not in self.model_fields_set:
            self.align = None
        return self

    @property
    def own_data(self) -> dict[str, DataSettings]:
        """The data of the stages that do not read the recipe's, by the name of their section."""
        sections = {name: getattr(self, name) for name in STAGES_THAT_READ}
        return {name: section.data for name, section in sections.items() if section is not None and section.data}

    @property
    def target(self) -> TargetSettings:
        """The main hybrid's architecture; until `for_model` has found one, where none is named, the default."""
        return self.convert.target or target_settings(DEFAULT)

    def for_model(self, config: PreTrainedConfig) -> "Recipe":
        """This recipe with a target: where it names none, the first that can hold the model of this config.

        Raises:
            RadistillError: if none can, with what stands in the way of each.
        """
        if self.convert.target is not None:
            return self
        target = target_for(config, self.model)
        return self.model_copy(update={"convert": self.convert.model_copy(update={"target": target})})

    @property
    def hybrids(self) -> list[Arm]:
        """The main hybrid, and each arm."""
        main = Arm(
            name=MAIN,
            by=self.diagnose.by,
            selector=self.diagnose.selector,
            budget=None if self.diagnose.budget == "auto" else self.diagnose.budget,
            penalty=self.diagnose.penalty,
            target=self.target,
            init=self.convert.init,
            teacher=self.teacher,
            align=self.align,
            distill=self.distill,
            finetune=self.finetune,
            connect=self.connect,
        )
        return [main, *(arm_of(main, name, settings, self.model) for name, settings in self.arms.items())]

    @property
    def sees(self) -> bool:
        """Whether one of them is a drafter that reads its teacher's images."""
        return any(arm.sees for arm in self.hybrids)

    def save(self, path: Path | str) -> None:
        """Write `to_yaml` to a file."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml_of(self.model_dump(mode="json"))


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `distill.steps=20`.

    Raises:
        RadistillError: naming the file, the field and what it may be.
    """
    path = Path(path)
    data = read_yaml(read_text(path, most_bytes=MOST_RECIPE_BYTES), str(path))
    if not isinstance(data, dict):
        what = "is empty" if data is None else "is not a recipe"
        raise RadistillError(f"{path}: {what}; a recipe is a mapping of fields such as `model: smollm2-135m`")
    return _checked(data, str(path), overrides)


def recipe_for(model: str, data: str, budget: int, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of defaults for a model, data in one word (see `data.sources.settings_of`) and a number of layers.

    The data is shared out as far as it goes: an eighth of the prompts is held out.

    Raises:
        RadistillError: on whatever is wrong with the data, or naming the field and what it may be.
    """
    settings = settings_of(data)
    fields = settings.model_dump(mode="json") | shares(settings, seed=0)
    recipe = {"model": model, "data": fields, "diagnose": {"budget": budget}}
    return _checked(recipe, f"recipe for {model}", overrides)


def _checked(data: dict[str, Any], where: str, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        _override(data, override)
    try:
        # As JSON, because only so pydantic is strict and still takes a text for a path: `steps: true` is not 1 step.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise RadistillError(f"{where}: {explain(error, Recipe)}") from None
    try:
        wrong = next(filter(None, (_contradiction(recipe, arm) for arm in recipe.hybrids)), None)
    except RadistillError as error:
        raise RadistillError(f"{where}: {error}") from None
    if wrong:
        raise RadistillError(f"{where}: {wrong}")
    return recipe


def _contradiction(recipe: Recipe, arm: Arm) -> str | None:
    """What two fields of a hybrid that are each right say against one another, if they do."""
    by, retrieval, keep = arm.field("diagnose", "by"), recipe.data.retrieval, recipe.diagnose.keep
    if retrieval is None and needs_retrieval(recipe.diagnose.objective):
        return f"diagnose.objective is {recipe.diagnose.objective}, which needs texts; give data.retrieval a section"
    if keep is not None and keep.kl is not None and recipe.data.heldout < 2:
        return "diagnose.keep.kl is about an interval, which one document does not have; raise data.heldout"
    if keep is not None and keep.recall is not None:
        if retrieval is None:
            return "diagnose.keep.recall needs texts; give data.retrieval a section"
        texts = len(retrieval.contexts) * retrieval.heldout
        if ratio_interval(texts, 0, 0)[0] < keep.recall:
            return (
                f"diagnose.keep.recall is {keep.recall:g}, which {texts} texts cannot show, even if all are found; "
                "raise data.retrieval.heldout"
            )
    if arm.distill is not None and (wrong := arm.distill.contradiction):
        return wrong if arm.is_main else f"arms.{arm.name}: {wrong}"
    own = recipe.own_data.get("distill")
    if (own or recipe.data).loss_on == "all" and arm.distill is not None and arm.distill.on_policy is not None:
        return (
            f"{'distill.data' if own else 'data'}.loss_on is all, which leaves no prompt for "
            f"{arm.field('distill', 'on_policy')} to answer; set it to response, or on_policy to null"
        )
    if wrong := _about_seeing(arm):
        return wrong
    if arm.budget == 0 and (TARGETS[arm.target.kind].mixers or arm.teacher is None):
        return (
            f"{arm.field('diagnose', 'budget')} is 0, so the student is the model as it is, which needs "
            "convert.target: cut and a teacher to draft for; raise it, or give both"
        )
    if not TARGETS[arm.target.kind].mixers and (wrong := _needs_blocks(arm)):
        return wrong
    if wrong := contradiction(arm.by, arm.selector, recipe.diagnose.objective):
        return wrong.replace("diagnose.by", by).replace("diagnose.selector", arm.field("diagnose", "selector"))
    if arm.by == "replaceability" and arm.align is None:
        return (
            f"{by} is {arm.by}, which needs fitted blocks, but {arm.field('align')} is null; give it a section, or set "
            f"{by}: redundancy"
        )
    if arm.align is None and find_initialisation(arm.init, arm.target).needs_fit:
        return (
            f"{arm.field('convert', 'init')} is {arm.init}, which needs a fit, but {arm.field('align')} is null; give "
            "it a section, or set init: zero"
        )
    return None


def _needs_blocks(arm: Arm) -> str | None:
    """What a hybrid without new blocks is asked, if it is something that they are needed for."""
    target = f"{arm.field('convert', 'target')} is {arm.target.kind}, which has no new blocks"
    if arm.by == "replaceability":
        return f"{target} to judge layers by; set {arm.field('diagnose', 'by')}: redundancy"
    if arm.align is not None:
        return f"{target} to fit; set {arm.field('align')} to null"
    for training in arm.trainings:
        if not training.trains(new=False) and not arm.sees:
            rate = arm.field(training.section, "other_learning_rate")
            return f"{target}, so with {rate} 0 there is nothing to train; set it to 3e-4 or so"
    if arm.distill is not None and arm.distill.rate_search is not None:
        return f"{target} whose rate could be searched; set {arm.field('distill', 'rate_search')} to null"
    return None


def _about_seeing(arm: Arm) -> str | None:
    """What a drafter that sees needs and a hybrid lacks, or the other way round."""
    if not arm.sees:
        return "connect is for convert.target: massv; leave it out" if arm.connect is not None else None
    if arm.teacher is None:
        return "convert.target is massv, a drafter for a teacher that reads images; name that in teacher"
    if arm.budget != 0:
        return f"convert.target is massv, from which no layer goes; set {arm.field('diagnose', 'budget')} to 0"
    return None


def _override(data: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    if not equals or not all(field.split(".")):
        raise RadistillError(f"--set {override}: write it as field=value, for example distill.steps=20")
    *parents, last = field.split(".")
    node = data
    for depth, parent in enumerate(parents, start=1):
        child = node.get(parent)
        if isinstance(child, str) and has_fields(parents[:depth], Recipe):
            child = kind_of(child)  # `selector: bayes` takes settings like its long form
        elif child is None:
            child = {}
        if not isinstance(child, dict):
            raise RadistillError(f"--set {override}: {parent} is {child!r}, which has no fields")
        node[parent] = child
        node = child
    node[last] = read_yaml(text, f"--set {shortened(override)}")
