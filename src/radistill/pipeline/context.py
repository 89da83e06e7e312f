"""What the stages of one run share: the recipe, the folder, and models that are loaded when first needed."""

import gc
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from radistill.conversion.seeing import language_model
from radistill.data.records import RETRIEVAL, SPLITS, DataSplits
from radistill.errors import RadistillError
from radistill.models.anatomy import anatomy_of
from radistill.models.loading import Model, load, load_config, load_tokenizer, load_without_weights
from radistill.models.sources import signature
from radistill.pipeline.preflight import check_hybrids
from radistill.processes import Processes, join, own_device
from radistill.runs.arms import Arm
from radistill.runs.folder import HybridFiles, RunFolder
from radistill.runs.recipe import Recipe
from radistill.runs.sections import STAGES_THAT_READ


class Context:
    """A run in progress."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        """Nothing is loaded yet, but the model's config where the recipe leaves the target open."""
        self.recipe = recipe
        if recipe.convert.target is None:
            self.recipe = recipe.for_model(self.config)
        self.hybrids = self.recipe.hybrids
        self.folder = RunFolder(path)
        self._teachers: dict[str, Model] = {}
        self._served: dict[str, Model] = {}
        self._signatures: dict[str, list[str]] = {}

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
    def config(self) -> PreTrainedConfig:
        """The config of the model to convert; where the drafter sees, of its language model."""
        config = load_config(self.recipe.model, self.recipe.trust_remote_code, images=self.recipe.sees)
        text: PreTrainedConfig = config.get_text_config()
        return text

    @cached_property
    def base(self) -> Model:
        """The model to convert.

        Raises:
            RadistillError: if a hybrid cannot be made of it, by its config, before any weight is read.
        """
        check_hybrids(self.recipe, self.config)
        return language_model(self.load(self.recipe.model))

    def teacher(self, source: str | None) -> Model:
        """The model that is distilled: the base itself unless another is named."""
        if source is None:
            return self.base
        if source not in self._teachers:
            self.release_teachers()
            self._teachers[source] = self.load(source)
        return self._teachers[source]

    def served(self, source: str | None) -> Model:
        """The model that is distilled, without its weights: where a server does what would need them."""
        source = source or self.recipe.model
        if source not in self._served:
            self._served[source] = load_without_weights(
                source, self.recipe.trust_remote_code, images=self.recipe.sees, dtype=self.recipe.dtype
            )
        return self._served[source]

    @cached_property
    def chat_template(self) -> str | dict[str, str] | None:
        """The template that the conversations among the training documents were written with; None without any."""
        if not any(record.example.messages for stage in STAGES_THAT_READ for record in self.splits_of(stage).train):
            return None
        recipe = self.recipe
        if recipe.teacher is None:
            return self.base.tokenizer.chat_template
        return load_tokenizer(recipe.teacher, recipe.trust_remote_code).chat_template

    def release_teachers(self) -> None:
        """Give back the memory of teachers that are not the base; one is loaded again if it is needed again."""
        if not self._teachers:
            return
        self._teachers.clear()
        gc.collect()  # modules and hooks may refer to one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def splits(self) -> DataSplits:
        """What the data stage left.

        Raises:
            RadistillError: if a file is missing or damaged, or is of another model.
        """
        return self._splits_in(self.folder.data())

    def data_of(self, stage: str) -> Path:
        """Where the documents of `align`, `distill` or `finetune` lie: with the recipe's, unless it has its own."""
        return self.folder.data(stage if stage in self.recipe.own_data else None)

    def splits_of(self, stage: str) -> DataSplits:
        """What the data stage left for `align`, `distill` or `finetune`."""
        return self._splits_in(self.data_of(stage)) if stage in self.recipe.own_data else self.splits

    def _splits_in(self, folder: Path) -> DataSplits:
        splits = DataSplits.load(folder, self.teacher(self.recipe.teacher).reader if self.recipe.sees else None)
        for split in (*SPLITS, *RETRIEVAL):
            tokens = [max(document.tokens) for document in splits.documents(split)]
            if not tokens and split in RETRIEVAL:
                continue
            if not tokens or max(tokens) >= self._vocabulary:
                wrong = "has a token that the model does not have" if tokens else "has no rows"
                raise RadistillError(
                    f"{folder / split}.jsonl: {wrong}; without this file, `radistill data` makes it anew"
                )
        return splits

    @cached_property
    def _vocabulary(self) -> int:
        return anatomy_of(self.config).vocab_size

    def load(self, source: str | Path) -> Model:
        """Load a model as the recipe wants its models."""
        return load(
            source,
            dtype=self.recipe.dtype,
            device=self.device,
            trust_remote_code=self.recipe.trust_remote_code,
            images=self.recipe.sees,
        )

    def files(self, arm: Arm) -> HybridFiles:
        """Where the files of a hybrid lie."""
        return self.folder.hybrid(arm.name)

    def signature(self, source: str) -> list[str]:
        """What tells two states of a model apart; its files are read once in a run."""
        if source not in self._signatures:
            self._signatures[source] = signature(source)
        return self._signatures[source]

    def settings_of(self, *names: str) -> dict[str, Any]:
        """The named recipe sections as plain data, for a step's inputs."""
        dumped = self.recipe.model_dump(mode="json")
        return {name: dumped[name] for name in names}
