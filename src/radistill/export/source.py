"""What is exported: a model folder, and what the run that made it knows about it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedConfig

from radistill.diagnosis.plan import Plan
from radistill.errors import RadistillError
from radistill.export.lineage import Lineage, lineage_of
from radistill.models.anatomy import anatomy_of
from radistill.models.checkpoint import WEIGHT_INDEX, check_weights, is_own, read_config
from radistill.runs.folder import MAIN, is_run, student_of
from radistill.runs.read import HybridResults, Run, read_run

# What transformers reads of a folder, beside the config, by which it is told what is elsewhere, and the weights.
_READ = (
    WEIGHT_INDEX,
    "generation_config.json",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)


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
    run: Run | None

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return read_config(self.folder)

    @cached_property
    def base(self) -> Lineage | None:
        """The model that was converted; None where nothing says which."""
        return lineage_of(self.run.plan.model) if self.run is not None and self.run.plan.model else None

    @cached_property
    def teacher(self) -> Lineage | None:
        """The teacher, where the recipe names another model than the base."""
        named = self.hybrid.arm.teacher if self.hybrid is not None and self.hybrid.arm is not None else None
        return lineage_of(named) if named else None

    @property
    def hybrid(self) -> HybridResults | None:
        """What the run knows of this model; None without a run."""
        hybrids = self.run.hybrids if self.run is not None else ()
        return next((hybrid for hybrid in hybrids if hybrid.name == self.arm), None)

    @property
    def plan(self) -> Plan | None:
        """The plan that this model follows; None where there is none."""
        return self.hybrid.plan if self.hybrid is not None else None

    @property
    def replaced(self) -> list[int]:
        """Layers whose attention was replaced, as far as a plan says so."""
        return self.plan.replace if self.plan is not None else []

    @property
    def name(self) -> str:
        """Name of the exported model, from its base or its folder."""
        if self.base is None:
            return self.folder.resolve().name
        kind = "drafter" if self.is_cut else "hybrid"
        return f"{self.base.name.rpartition('/')[2]}-{kind}{'' if self.arm == MAIN else f'-{self.arm}'}"

    @property
    def is_cut(self) -> bool:
        """Whether it is the base with fewer layers, a draft model."""
        return self.plan is not None and self.plan.whole_layers


def find_source(path: Path, arm: str = MAIN) -> Source:
    """The model to export: the student of a run folder, or a model folder itself.

    Raises:
        RadistillError: if there is no such folder, the run has no student yet, or the weights are missing or damaged.
    """
    if path.is_file():
        raise RadistillError(f"{path}: is a file; name the run folder or the model folder that it was made from")
    if not path.is_dir():
        raise RadistillError(f"{path}: no such run or model folder")
    if (path / "config.json").is_file():
        if arm != MAIN:
            raise RadistillError(f"{path}: a model, not a run folder, so it has no arms; leave --arm out")
        source = Source(path, arm, None)
    elif is_run(path):
        run = read_run(path)
        if arm not in (names := [hybrid.name for hybrid in run.hybrids]):
            raise RadistillError(f"{path}: this run has no arm {arm!r}; it can be {', '.join(names)}")
        source = Source(student_of(path, arm).student, arm, run)
    else:
        raise RadistillError(f"{path}: neither a run folder (recipe.yaml, run.json) nor a model (config.json)")
    check_weights(source.folder)
    _check_links(source.folder)
    _check_plan(source)
    return source


def _check_links(folder: Path) -> None:
    """What transformers reads ends up in an export, whatever its format; weights may lie anywhere, and are checked."""
    for pattern in _READ:
        for file in folder.glob(pattern):
            if not is_own(file, folder):
                raise RadistillError(
                    f"{file}: is a link out of the model's folder, and an export takes nothing from elsewhere; put a "
                    "copy in its place, or remove it"
                )


def _check_plan(source: Source) -> None:
    """A plan that was found anew after the student was trained would tell of another model."""
    anatomy = anatomy_of(source.config)
    if source.is_cut and source.plan is not None:
        left = source.plan.num_layers - len(source.replaced)
        if anatomy.num_layers != left:
            raise RadistillError(
                f"{source.folder}: has {anatomy.num_layers} layers, but the run's plan leaves {left}; the student is "
                "older than the plan, so finish the run first"
            )
        return
    without_attention = set(anatomy.ssm_layers)
    missing = sorted(set(source.replaced) - without_attention)
    if missing:
        raise RadistillError(
            f"{source.folder}: layer {missing[0]} has attention, but the run's plan replaces it; the student is older "
            "than the plan, so finish the run first"
        )
