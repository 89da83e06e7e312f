"""What is exported: a model folder, and what the run that made it knows about it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from radistill.errors import RadistillError
from radistill.export.lineage import Lineage, lineage_of
from radistill.models.anatomy import anatomy_of
from radistill.models.checkpoint import check_weights, read_config
from radistill.report.run_folder import RunFolder, read_run_folder

ARMS = ("rad", "baseline")
_RUN_FILES = ("recipe.yaml", "plan.json", "run.json")


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        folder: the transformers folder with its weights.
        arm: which hybrid of the run it is.
        run: the run's records; None for a plain model folder.
    """

    folder: Path
    arm: str
    run: RunFolder | None

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return read_config(self.folder)

    @cached_property
    def base(self) -> Lineage | None:
        """The model that was converted; None where nothing says which."""
        return lineage_of(str(self.run.plan["model"])) if self.run is not None and self.run.plan.get("model") else None

    @cached_property
    def teacher(self) -> Lineage | None:
        """The teacher, where the recipe names another model than the base."""
        named = self.run.recipe.get("teacher") if self.run is not None else None
        return lineage_of(str(named)) if named else None

    @property
    def plan(self) -> dict[str, Any]:
        """The plan that this model follows; empty where there is none."""
        if self.run is None:
            return {}
        return self.run.plan if self.arm == "rad" else self.run["baseline/plan.json"]

    @property
    def replaced(self) -> list[int]:
        """Layers whose attention was replaced, as far as a plan says so."""
        return sorted(self.plan.get("replace", []))

    @property
    def name(self) -> str:
        """Name of the exported model, from its base or its folder."""
        if self.base is None:
            return self.folder.resolve().name
        return f"{self.base.name.rpartition('/')[2]}-{'hybrid' if self.arm == 'rad' else 'baseline-hybrid'}"


def find_source(path: Path, arm: str = "rad") -> Source:
    """The model to export: the student of a run folder, or a model folder itself.

    Raises:
        RadistillError: if there is no such folder, the run has no student yet, or the weights are missing or damaged.
    """
    if arm not in ARMS:
        raise RadistillError(f"arm is {arm!r}; it can be {', '.join(ARMS)}")
    if not path.is_dir():
        raise RadistillError(f"{path}: no such run or model folder")
    if (path / "config.json").is_file():
        if arm != "rad":
            raise RadistillError(f"{path}: a model, not a run folder, so it has no arms; leave --arm out")
        source = Source(path, arm, None)
    elif any((path / name).is_file() for name in _RUN_FILES):
        folder = path / "student" if arm == "rad" else path / "baseline" / "student"
        if not (folder / "config.json").is_file():
            raise RadistillError(f"{folder}: this run has no student there yet; run `radistill run --out {path}` first")
        source = Source(folder, arm, read_run_folder(path))
    else:
        raise RadistillError(f"{path}: neither a run folder ({', '.join(_RUN_FILES)}) nor a model (config.json)")
    check_weights(source.folder)
    _check_plan(source)
    return source


def _check_plan(source: Source) -> None:
    """A plan that was found anew after the student was trained would tell of another model."""
    without_attention = set(anatomy_of(source.config).ssm_layers)
    missing = sorted(set(source.replaced) - without_attention)
    if missing:
        raise RadistillError(
            f"{source.folder}: layer {missing[0]} has attention, but the run's plan replaces it; the student is older "
            "than the plan, so finish the run first"
        )
