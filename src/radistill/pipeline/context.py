"""What the stages of one run share: the recipe, the folder, and models that are loaded when first needed."""

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from radistill.conversion.targets import TargetSettings
from radistill.data.prepare import DataSplits
from radistill.diagnosis.plan import By
from radistill.diagnosis.selectors import SelectorSettings
from radistill.errors import RadistillError
from radistill.models.loading import Model, load
from radistill.pipeline.run_folder import RunFolder
from radistill.processes import Processes, join, own_device
from radistill.runs.recipe import AlignStage, DistillStage, FinetuneStage, Recipe

MAIN_ARM = "rad"


@dataclass(frozen=True)
class Arm:
    """One hybrid of a run, from its plan to its weights.

    Attributes:
        name: its key in evaluation.json.
        folder: where its files lie.
        by: whether they are judged by redundancy or by replaceability.
        selector: how its layers are chosen.
        target: the architecture it becomes.
        init: how its new blocks start.
        align: how they are fitted, or None.
        distill: how it is distilled end to end, or None.
        finetune: how it is fine-tuned after that, or None.
    """

    name: str
    folder: Path
    by: By
    selector: SelectorSettings
    target: TargetSettings
    init: str
    align: AlignStage | None
    distill: DistillStage | None
    finetune: FinetuneStage | None

    @property
    def is_main(self) -> bool:
        """Whether it is the hybrid that the run is about, not a baseline."""
        return self.name == MAIN_ARM

    @property
    def plan(self) -> Path:
        """The plan file."""
        return self.folder / "plan.json"

    @property
    def start(self) -> Path:
        """The converted model before any training."""
        return self.folder / "start"

    @property
    def distilled(self) -> Path:
        """The distilled model: the trained one, where no fine-tuning follows."""
        return self.student if self.finetune is None else self.folder / "distilled"

    @property
    def student(self) -> Path:
        """The trained model."""
        return self.folder / "student"


class Context:
    """A run in progress."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        """Nothing is loaded yet."""
        self.recipe = recipe
        self.path = path
        self.folder = RunFolder(path)

    @cached_property
    def device(self) -> str:
        """The device that the recipe asks for; of several GPUs, the one that belongs to this process.

        Raises:
            RadistillError: if it asks for a GPU and there is none.
        """
        if self.recipe.device == "auto":
            return own_device("cuda") if torch.cuda.is_available() else "cpu"
        if self.recipe.device == "cuda" and not torch.cuda.is_available():
            raise RadistillError("device is 'cuda', but torch sees no GPU; set device to cpu or auto")
        return own_device(self.recipe.device)

    @cached_property
    def processes(self) -> Processes:
        """The processes that run this command, which meet when one of them asks."""
        return join(self.device.partition(":")[0])

    @cached_property
    def base(self) -> Model:
        """The model to convert."""
        return self.load(self.recipe.model)

    @cached_property
    def teacher(self) -> Model:
        """The model that is distilled: the base itself unless the recipe names another."""
        return self.base if self.recipe.teacher is None else self.load(self.recipe.teacher)

    def release_teacher(self) -> None:
        """Give back the memory of a teacher that is not the base; it is loaded again if it is needed again."""
        if self.recipe.teacher is None:
            return
        self.__dict__.pop("teacher", None)
        gc.collect()  # modules and hooks may refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def splits(self) -> DataSplits:
        """What the data stage left."""
        return DataSplits.load(self.path / "data")

    def data_of(self, stage: str) -> Path:
        """Where the documents of `align`, `distill` or `finetune` lie: with the recipe's, unless it has its own."""
        data = self.path / "data"
        return data / stage if stage in self.recipe.own_data else data

    def splits_of(self, stage: str) -> DataSplits:
        """What the data stage left for `align`, `distill` or `finetune`."""
        return DataSplits.load(self.data_of(stage)) if stage in self.recipe.own_data else self.splits

    def load(self, source: str | Path) -> Model:
        """Load a model as the recipe wants its models."""
        return load(
            source, dtype=self.recipe.dtype, device=self.device, trust_remote_code=self.recipe.trust_remote_code
        )

    @property
    def arms(self) -> list[Arm]:
        """The hybrid and, if the recipe has one, its baseline."""
        recipe = self.recipe
        arms = [
            Arm(
                name=MAIN_ARM,
                folder=self.path,
                by=recipe.diagnose.by,
                selector=recipe.diagnose.selector,
                target=recipe.convert.target,
                init=recipe.convert.init,
                align=recipe.align,
                distill=recipe.distill,
                finetune=recipe.finetune,
            )
        ]
        baseline = recipe.baseline
        if baseline is not None:
            arms.append(
                Arm(
                    name=baseline.selector.kind,
                    folder=self.path / "baseline",
                    by="redundancy",
                    selector=baseline.selector,
                    target=baseline.target,
                    init=baseline.init,
                    align=baseline.align_settings(recipe),
                    distill=baseline.distill_settings(recipe),
                    finetune=recipe.finetune,
                )
            )
        return arms

    def settings_of(self, *names: str) -> dict[str, Any]:
        """The named recipe sections as plain data, for a step's fingerprint."""
        dumped = self.recipe.model_dump(mode="json")
        return {name: dumped[name] for name in names}


def source_signature(source: str) -> Any:
    """What tells two states of a model apart without loading it: files' names, sizes and times, or the name."""
    path = Path(source).expanduser()
    if path.is_file():
        return [source, path.stat().st_size, path.stat().st_mtime_ns]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return [source, [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
    return source
