"""The recipe: the only input of a run. Every field has a type, a default where one makes sense, and a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from radistill.conversion.initialisation import INITIALISATIONS, find_initialisation
from radistill.conversion.targets import GraniteHybridSettings, TargetSettings
from radistill.data.settings import DataSettings
from radistill.diagnosis.objectives import OBJECTIVES
from radistill.diagnosis.selectors import EQUAL_PASSES, Bayes, Greedy, KLGuided, SelectorSettings, Uniform
from radistill.distillation.align import AlignSettings
from radistill.distillation.settings import DistillSettings, FinetuneSettings
from radistill.errors import RadistillError
from radistill.files import write_text
from radistill.runs.evaluate_settings import EvaluateSettings
from radistill.runs.recipe_errors import explain, has_fields
from radistill.runs.recipe_yaml import read_mapping


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


_OWN_DATA = (
    "what it reads instead of the recipe's `data`, with held-out examples of its own to measure on (calibration "
    "examples are not used); null is the recipe's"
)


_RATES = {"random": 1e-3, "transfer": 1e-2}
"""Of starts so far from the teacher that the rate of a hybrid's fitted blocks would leave them there, and the hybrid
would be compared with a baseline that nobody tuned."""


class DiagnoseSettings(BaseModel):
    """Which attention layers go."""

    model_config = ConfigDict(extra="forbid")

    budget: int = Field(ge=1, description="attention layers to replace; with a `penalty`, at most")
    penalty: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="what an attention layer that stays costs, in the objective's unit; null fixes their number",
    )
    by: Literal["redundancy", "replaceability"] = Field(
        default="replaceability",
        description="`replaceability` judges drafts with a fitted block in place of attention, which `align` fits for "
        "every layer first; `redundancy` drafts that skip it, which is RAD as published and fits nothing first",
    )
    selector: Selector = Field(default_factory=Greedy, description="how they are chosen")
    objective: Annotated[str, _one_of(list(OBJECTIVES))] = Field(default="kl", description="what the search maximises")
    passes: float | None = Field(
        default=None,
        gt=0,
        description="what a search may spend, in passes of the whole model over the calibration data; "
        f"null lets it end by itself, and gives each selector of `all` {EQUAL_PASSES}",
    )
    context_length: int = Field(
        default=1024, ge=1, description="tokens in the cache where `throughput-modelled` times the components"
    )
    draft_length: int = Field(
        default=4, ge=1, description="tokens drafted in a round where `throughput-measured` decodes"
    )
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")

    @property
    def sizes(self) -> range:
        """How many layers may be chosen."""
        return range(self.budget if self.penalty is None else 1, self.budget + 1)


class ConvertSettings(BaseModel):
    """What the replaced layers become."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    target: Target = Field(default_factory=GraniteHybridSettings, description="the student's architecture")
    init: Initialisation = Field(default="fitted", description="how the new blocks start")


class AlignStage(AlignSettings):
    """How the new blocks are fitted before any end-to-end training."""

    data: DataSettings | None = Field(
        default=None,
        description="what it reads instead of the recipe's `data`; only the training examples are used, a part of them "
        "to measure the fit; null is the recipe's",
    )


class DistillStage(DistillSettings):
    """How the student is trained on the teacher's distributions."""

    data: DataSettings | None = Field(default=None, description=_OWN_DATA)


class FinetuneStage(FinetuneSettings):
    """How the whole student is trained on response tokens, without a teacher."""

    data: DataSettings | None = Field(default=None, description=_OWN_DATA)


class BaselineSettings(BaseModel):
    """A second hybrid, for comparison: the same budget, data and end-to-end tokens, other choices."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    selector: Selector = Field(default_factory=Uniform, description="how its layers are chosen")
    target: Target = Field(
        default_factory=lambda: GraniteHybridSettings(groups="heads"),
        description="its architecture; a per-head transfer needs one B/C group a head",
    )
    init: Initialisation = Field(default="transfer", description="how its new blocks start")
    align: bool = Field(default=False, description="whether its blocks are fitted layer by layer too")
    steps: int | None = Field(default=None, ge=0, description="end-to-end steps; the hybrid's own number if null")
    new_block_learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="its own rate; null is the hybrid's, but 1e-2 for blocks that start by `transfer` and 1e-3 for "
        "`random` ones, where they are not fitted",
    )

    def align_settings(self, recipe: "Recipe") -> AlignStage | None:
        """How its blocks are fitted; None is not at all."""
        return recipe.align if self.align else None

    def distill_settings(self, recipe: "Recipe") -> DistillStage | None:
        """How it is trained, where the hybrid is trained as `recipe` says; None is not at all."""
        if recipe.distill is None or self.steps == 0:
            return None
        fitted = self.align_settings(recipe) is not None
        rate = self.new_block_learning_rate or (None if fitted else _RATES.get(self.init))
        own = {"steps": self.steps, "new_block_learning_rate": rate}
        return recipe.distill.model_copy(update={field: value for field, value in own.items() if value is not None})


class Recipe(BaseModel):
    """Everything that a run depends on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(min_length=1, description="the model to convert: hub id, folder, GGUF file or alias")
    teacher: str | None = Field(
        default=None, description="a larger teacher with the same tokenizer; null is self-distillation"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of every random choice")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; fixed threads make runs repeatable")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of weights and activations")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is the GPU where there is one")
    trust_remote_code: bool = Field(default=False, description="run model code that a hub repository brings")
    data: DataSettings = Field(description="what the models read: its source, how much of it, whose responses")
    diagnose: DiagnoseSettings = Field(description="which attention layers go")
    convert: ConvertSettings = Field(default_factory=ConvertSettings, description="what they become")
    align: AlignStage | None = Field(
        default_factory=AlignStage, description="the fit of each new block by itself; null leaves it out"
    )
    distill: DistillStage | None = Field(
        default_factory=DistillStage, description="end-to-end training; null leaves it out"
    )
    finetune: FinetuneStage | None = Field(
        default=None, description="next-token training after distillation; null leaves it out"
    )
    baseline: BaselineSettings | None = Field(
        default=None, description="a second hybrid to compare with; null trains none"
    )
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings, description="what is measured in the end")

    @property
    def own_data(self) -> dict[str, DataSettings]:
        """The data of the stages that do not read the recipe's, by the name of their section."""
        sections = {"align": self.align, "distill": self.distill, "finetune": self.finetune}
        return {name: section.data for name, section in sections.items() if section is not None and section.data}

    def save(self, path: Path | str) -> None:
        """Write the whole recipe, defaults included, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `distill.steps=20`.

    Raises:
        RadistillError: naming the file, the field and what it may be.
    """
    path = Path(path)
    data = read_mapping(path)
    for override in overrides:
        _override(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RadistillError(f"{path}: {explain(error, Recipe)}") from None
    if contradiction := _contradiction(recipe):
        raise RadistillError(f"{path}: {contradiction}")
    return recipe


def _contradiction(recipe: Recipe) -> str | None:
    """What two fields that are each right say against one another, if they do."""
    diagnose, baseline = recipe.diagnose, recipe.baseline
    if recipe.distill is not None and recipe.distill.contradiction:
        return recipe.distill.contradiction
    read, section = (
        (recipe.own_data["distill"], "distill.data") if "distill" in recipe.own_data else (recipe.data, "data")
    )
    if read.loss_on == "all" and recipe.distill is not None and recipe.distill.on_policy is not None:
        return (
            f"{section}.loss_on is all, which leaves no prompt for distill.on_policy to answer; set it to response, or "
            "on_policy to null"
        )
    if isinstance(diagnose.selector, KLGuided) and diagnose.by == "redundancy":
        return "diagnose.selector is kl-guided, which compares fitted blocks; set diagnose.by: replaceability"
    if baseline is not None and isinstance(baseline.selector, KLGuided):
        return "baseline.selector is kl-guided, but only the hybrid has fitted blocks to choose by; name another"
    if diagnose.by == "replaceability" and recipe.align is None:
        return (
            f"diagnose.by is {diagnose.by}, which needs fitted blocks, but align is null; give align a section, or set "
            "diagnose.by: redundancy"
        )
    if recipe.align is None and find_initialisation(recipe.convert.init).needs_fit:
        return (
            f"convert.init is {recipe.convert.init}, which needs a fit, but align is null; give align a section "
            "or set convert.init to zero"
        )
    if (
        baseline is not None
        and baseline.align_settings(recipe) is None
        and find_initialisation(baseline.init).needs_fit
    ):
        return (
            f"baseline.init is {baseline.init}, which needs a fit; set baseline.align to true (and align not to null)"
        )
    if diagnose.by == "redundancy":
        return None
    if diagnose.objective.startswith("throughput"):
        return (
            f"diagnose.objective is {diagnose.objective}, which is about drafts that skip attention, but diagnose.by "
            f"is {diagnose.by}; set diagnose.by: redundancy, or choose acceptance, accepted-length or kl"
        )
    if isinstance(diagnose.selector, Bayes) and diagnose.selector.workers > 1:
        return (
            f"diagnose.selector.workers is {diagnose.selector.workers}, but diagnose.by is {diagnose.by}, whose fitted "
            "blocks stay in the process that fitted them; set diagnose.by: redundancy, or search with one worker"
        )
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
