"""What a report is made from: the small files of a run folder, read once and checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from radistill.conversion.targets import TARGETS, mixer_of
from radistill.errors import RadistillError
from radistill.evaluation.comparison import Results, read_results
from radistill.evaluation.places import folders_in
from radistill.evaluation.run_tasks import SUMMARY
from radistill.files import read_json
from radistill.report.numbers import integer, number

# Every file but plan.json may be absent. What the reader then misses:
CONTENTS = {
    "recipe.yaml": "the recipe",
    "run.json": "seeds, versions, machine and seconds per stage",
    "baseline/plan.json": "the layers of the baseline",
    "align.json": "the layer-wise fit",
    "baseline/align.json": "the layer-wise fit of the baseline",
    "distill.json": "the loss curves of the RAD hybrid",
    "baseline/distill.json": "the loss curves of the baseline",
    "finetune.json": "the fine-tuning of the RAD hybrid",
    "baseline/finetune.json": "the fine-tuning of the baseline",
    "evaluation.json": "the results and the samples",
}


@dataclass(frozen=True)
class RunFolder:
    """The parsed files of one run.

    Attributes:
        files: content by file name; an absent file is an empty mapping.
        recipe_text: recipe.yaml as it is written.
        missing: files that the recipe asks for and that are not there.
        turned_off: files that the recipe does not ask for; they are not read, even if an earlier recipe left them.
        results: of base and hybrid on tasks, as far as they were evaluated.
    """

    path: Path
    files: dict[str, dict[str, Any]]
    recipe_text: str = ""
    missing: tuple[str, ...] = ()
    turned_off: frozenset[str] = field(default_factory=frozenset)
    results: tuple[Results, ...] = ()

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.files.get(name, {})

    @property
    def plan(self) -> dict[str, Any]:
        return self.files["plan.json"]

    @property
    def evaluation(self) -> dict[str, Any]:
        return self["evaluation.json"]

    @property
    def recipe(self) -> dict[str, Any]:
        return self["recipe.yaml"]

    @property
    def num_layers(self) -> int:
        return int(self.plan["num_layers"])

    @property
    def replaced(self) -> list[int]:
        """Layers whose attention the RAD plan replaces, sorted."""
        return sorted(self.plan["replace"])

    @property
    def by(self) -> str:
        """How the RAD plan's layers were judged; a plan that does not say is of a time when there was only this."""
        return str(self.plan.get("by", "redundancy"))

    @property
    def judged_arm(self) -> str:
        """The key in evaluation.json of the draft that the search judged: what training started from, or nearly so.

        That is the hybrid of fitted blocks where layers were chosen by these, and the base that only skips the layers
        where they were not, or where a hybrid of fitted blocks alone was not evaluated.
        """
        fitted = mapping(self.evaluation.get("rad_aligned"))
        swapped = self.by == "replaceability" and number(fitted.get("kl")) is not None
        return "rad_aligned" if swapped else "draft"

    @property
    def baseline_replaced(self) -> list[int]:
        """Layers whose attention the baseline's plan replaces, sorted; empty without a baseline."""
        return sorted(self["baseline/plan.json"].get("replace", []))

    @property
    def ssm_layers(self) -> list[int]:
        """Layers that have no attention in the base model either (a hybrid that is converted further)."""
        return [layer for layer in _list(self.plan.get("ssm_layers")) if integer(layer) is not None]

    @property
    def num_attention_layers(self) -> int:
        """Attention layers of the base model."""
        return self.num_layers - len(self.ssm_layers)

    @property
    def target(self) -> str:
        """The student architecture that the recipe asks for, or '' where the folder does not say."""
        return _kind(mapping(self.recipe.get("convert")).get("target"))

    @property
    def ssm_name(self) -> str:
        """What stands in place of attention, as precisely as the folder says."""
        return mixer_of(self.target).phrase if self.target in TARGETS else "an SSM"

    @property
    def baseline_key(self) -> str:
        """The baseline's key in evaluation.json: how its layers were chosen."""
        asked = _kind(mapping(self.recipe.get("baseline")).get("selector"))
        return asked or _kind(self["baseline/plan.json"].get("selector")) or "uniform"

    @property
    def baseline_init(self) -> str:
        """How the baseline's new blocks started, or '' where the folder does not say."""
        return str(mapping(self.recipe.get("baseline")).get("init") or "")


def read_run_folder(path: Path | str) -> RunFolder:
    """Read the files that a report needs.

    Raises:
        RadistillError: if the folder or its `plan.json` is missing, if a file is not valid JSON or YAML or is not a
            mapping, or if a plan names layers that the model does not have.
    """
    path = Path(path)
    if not path.is_dir():
        raise RadistillError(f"{path}: no such run folder; `radistill run RECIPE --out {path}` makes one")
    recipe_text, recipe = _recipe(path / "recipe.yaml")
    turned_off = _turned_off(recipe)
    wanted = [name for name in CONTENTS if name not in turned_off]
    missing = tuple(name for name in wanted if not (path / name).is_file())
    files = {"recipe.yaml": recipe, "plan.json": _plan(path / "plan.json")}
    for name in wanted:
        if name not in missing and name != "recipe.yaml":
            files[name] = _plan(path / name) if name == "baseline/plan.json" else _json_mapping(path / name)
    # No recipe asks for these two: commands of their own write them.
    if (path / "savings.json").is_file():
        files["savings.json"] = _json_mapping(path / "savings.json")
    results = tuple(
        read_results(name, folder)
        for name, folder in folders_in(path / "tasks").items()
        if (folder / SUMMARY).is_file()
    )
    layers = files["plan.json"]["num_layers"]
    baseline_layers = files.get("baseline/plan.json", {}).get("num_layers", layers)
    if layers != baseline_layers:
        raise RadistillError(
            f"{path / 'baseline/plan.json'}: num_layers is {baseline_layers}, but plan.json has {layers}: "
            "the two plans are for different models"
        )
    return RunFolder(path, files, recipe_text, missing, turned_off, results)


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The mappings in the list `value`; anything else is left out."""
    return [item for item in _list(value) if isinstance(item, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _kind(choice: Any) -> str:
    """The name of a choice that is written as `bayes` or as `{kind: bayes}`; '' for none."""
    return str(choice.get("kind", "") if isinstance(choice, dict) else choice or "")


def _turned_off(recipe: dict[str, Any]) -> frozenset[str]:
    """Files that a run of `recipe` does not write. Without a recipe, only the rare ones are not expected."""
    finetuned = {"finetune.json", "baseline/finetune.json"}
    if not recipe:
        return frozenset({"baseline/align.json"} | finetuned)
    # A recipe in a run folder has every default written out: what is off is null.
    baseline = mapping(recipe.get("baseline"))
    off = {name for name in ("align", "distill") if name in recipe and recipe[name] is None}
    files = {f"{folder}{name}.json" for name in off for folder in ("", "baseline/")}
    if not recipe.get("finetune"):
        files |= finetuned
    if not baseline.get("align"):
        files.add("baseline/align.json")
    if baseline.get("steps") == 0:
        files.add("baseline/distill.json")
    if "baseline" in recipe and not baseline:
        files |= {name for name in CONTENTS if name.startswith("baseline/")}
    return frozenset(files)


def _json_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise RadistillError(f"{path}: holds a {type(content).__name__}, but a JSON object is expected")
    return content


def _plan(path: Path) -> dict[str, Any]:
    plan = _json_mapping(path)
    layers = integer(plan.get("num_layers"))
    if layers is None or layers < 1:
        raise RadistillError(
            f"{path}: num_layers is {plan.get('num_layers')!r}, but a whole number above 0 is expected"
        )
    replace = plan.get("replace")
    if not isinstance(replace, list) or any(not isinstance(layer, int) for layer in replace):
        raise RadistillError(f"{path}: replace is {replace!r}, but a list of layer indices is expected")
    for position, layer in enumerate(replace):
        if not 0 <= layer < layers:
            raise RadistillError(f"{path}: replace[{position}] is {layer}, but this model has layers 0 to {layers - 1}")
    return plan


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, mapping(yaml.safe_load(text))
    except FileNotFoundError:
        return "", {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RadistillError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
