"""What a run has left: its small files, read once and checked, for whoever tells of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.runs.contents import mapping, read_content
from radistill.runs.folder import MAIN, RunFolder
from radistill.runs.run_recipe import TRAININGS, HybridRecipe, RunRecipe, read_run_recipe

_WORDS = {
    "plan": "the layers of {}",
    "align": "the layer-wise fit of {}",
    "distill": "the loss curves of {}",
    "finetune": "the fine-tuning of {}",
}


@dataclass(frozen=True)
class HybridResults:
    """One hybrid of a run.

    Attributes:
        name: its key in evaluation.json.
        arm: what the recipe says of it; None without a recipe.
        plan: its layers; None where they are not chosen yet.
        files: the content of `align`, `distill` and `finetune`.json; a file that is not there is an empty mapping.
    """

    name: str
    arm: HybridRecipe | None
    plan: Plan | None
    files: dict[str, dict[str, Any]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.files.get(name, {})

    @property
    def called(self) -> str:
        """What people call it: the main one by what it is, an arm by its name."""
        return kind_of(self.plan) if self.name == MAIN and self.plan is not None else self.name

    @property
    def replaced(self) -> list[int]:
        """Layers whose attention is replaced, sorted."""
        return self.plan.replace if self.plan is not None else []


@dataclass(frozen=True)
class Run:
    """The parsed files of one run.

    Attributes:
        path: the folder.
        recipe: what the steps on record were made with, and recipe.yaml for the rest; None where the folder has none.
        main: the hybrid that the run is about; its plan is there.
        arms: the hybrids that it is compared with.
        evaluation, record, savings, tradeoff, promise: content of the files of these names; one that is not there, or
            that the recipe does not ask for, is an empty mapping.
        missing: files that the recipe asks for and that are not there, and what a reader misses.
        turned_off: files that the recipe does not ask for; they are not read, even if an earlier recipe left them.
    """

    path: Path
    recipe: RunRecipe | None
    main: HybridResults
    arms: tuple[HybridResults, ...]
    evaluation: dict[str, Any]
    record: dict[str, Any]
    savings: dict[str, Any]
    tradeoff: dict[str, Any] = field(default_factory=dict)
    promise: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    turned_off: frozenset[str] = frozenset()

    @property
    def hybrids(self) -> tuple[HybridResults, ...]:
        """The main hybrid and the arms."""
        return (self.main, *self.arms)

    @cached_property
    def plan(self) -> Plan:
        """The main hybrid's layers."""
        assert self.main.plan is not None  # without one, nothing is read
        return self.main.plan

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """What run.json says of the finished steps, by their names."""
        return self.record.get("stages", {})

    def inputs(self, step: str) -> dict[str, Any]:
        """What a finished step has read; empty where it is not finished."""
        return mapping(self.steps.get(step, {}).get("inputs"))

    @property
    def versions(self) -> dict[str, Any]:
        """With which the main hybrid was trained; where no step says so, those of the last one that was run."""
        trained = self.steps.get(f"finetune:{MAIN}") or self.steps.get(f"distill:{MAIN}", {})
        return trained.get("versions") or self.record.get("versions", {})

    @property
    def num_attention_layers(self) -> int:
        """Attention layers of the base model."""
        return self.plan.num_layers - len(self.plan.ssm_layers)

    @property
    def block(self) -> str:
        """What stands in place of attention, as precisely as the folder says."""
        if blocks := self.steps.get(f"convert:{MAIN}", {}).get("blocks"):
            return str(blocks)
        if self.recipe is None:
            return "an SSM"
        # Not above: this imports torch, which takes seconds.
        from radistill.conversion.targets import mixer_of

        return mixer_of(self.recipe.target).phrase

    @property
    def kind(self) -> str:
        """What people call the models that the run makes."""
        return self.main.called

    @property
    def change(self) -> str:
        """What was done to so many of the base model's layers."""
        return "layers cut" if self.plan.whole_layers else "attention layers replaced"

    @property
    def judged(self) -> str:
        """The key in evaluation.json of the draft that the search judged: what training started from, or nearly so.

        That is the hybrid of fitted blocks where layers were chosen by these, and the base that only skips the layers
        where they were not, or where a hybrid of fitted blocks alone was not evaluated.
        """
        start = self.evaluation.get(f"{MAIN}_start")
        swapped = self.plan.by == "replaceability" and isinstance(start, dict) and "kl" in start
        return f"{MAIN}_start" if swapped else "draft"


def kind_of(plan: Plan) -> str:
    """What people call a model that a plan has made: of whole layers cut, a drafter."""
    return "drafter" if plan.whole_layers else "hybrid"


def read_run(path: Path | str) -> Run:
    """Read the small files of a run folder.

    Raises:
        RadistillError: if the folder or its `plan.json` is missing, a file is damaged, the recipe is none of ours, or a
            plan is for another model.
    """
    path = Path(path)
    if not path.is_dir():
        raise RadistillError(f"{path}: no such run folder; `radistill run RECIPE --out {path}` makes one")
    folder = RunFolder(path)
    missing: dict[str, str] = {}
    off: set[str] = set()
    if not folder.recipe.is_file():
        missing[folder.recipe.name] = "the recipe"

    def content(file: Path, words: str) -> dict[str, Any]:
        if file.is_file():
            return read_content(file)
        missing[str(file.relative_to(path))] = words
        return {}

    record = content(folder.record, "seeds, versions, machine and seconds per stage")
    recipe = read_run_recipe(folder.recipe, record) if folder.recipe.is_file() else None
    if recipe is not None:
        known: list[tuple[str, HybridRecipe | None]] = [(arm.name, arm) for arm in recipe.hybrids]
    else:  # an earlier recipe may have left more than its last run had
        known = [(name, None) for name in (MAIN, *sorted(path.name for path in folder.arms.glob("*")))]
    hybrids = [_hybrid(folder, name, arm, content, off) for name, arm in known]
    evaluation = content(folder.evaluation, "the results and the samples")
    if recipe is not None:  # an arm that was taken out may still have results there
        names = {"base", "draft", "samples", *(name for name, _ in known)}
        evaluation = {key: value for key, value in evaluation.items() if key.removesuffix("_start") in names}
    # Not every run has these.
    savings, tradeoff = (read_content(file) if file.is_file() else {} for file in (folder.savings, folder.tradeoff))
    promises = recipe is None or recipe.keep.get("tasks")
    promise = read_content(folder.promise) if promises and folder.promise.is_file() else {}
    main, *arms = hybrids
    assert main.plan is not None
    for arm in arms:
        if arm.plan is not None and arm.plan.num_layers != main.plan.num_layers:
            raise RadistillError(
                f"{folder.hybrid(arm.name).plan}: num_layers is {arm.plan.num_layers}, but plan.json has "
                f"{main.plan.num_layers}: the two plans are for different models"
            )
    return Run(
        path,
        recipe,
        main,
        tuple(arms),
        evaluation,
        record,
        savings,
        tradeoff,
        promise,
        missing,
        frozenset(off),
    )


def _hybrid(
    folder: RunFolder,
    name: str,
    arm: HybridRecipe | None,
    content: Callable[[Path, str], dict[str, Any]],
    off: set[str],
) -> HybridResults:
    files = folder.hybrid(name)
    plan = None
    if name == MAIN or files.plan.is_file():
        plan = Plan.load(files.plan)
    else:
        content(files.plan, _WORDS["plan"].format(name))
    found = {}
    for training in TRAININGS:
        file: Path = getattr(files, training)
        # Without a recipe, only what is usual is expected.
        usual = training == "distill" or (training == "align" and name == MAIN)
        wanted = usual or file.is_file() if arm is None else training in arm.trainings
        if wanted:
            found[training] = content(file, _WORDS[training].format("the hybrid" if name == MAIN else name))
        else:
            off.add(str(file.relative_to(folder.path)))
    return HybridResults(name, arm, plan, found)
