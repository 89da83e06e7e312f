"""How much the stages of a run read, fit and train on, at most: what memory, disk and time are estimated from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from radistill.conversion.targets import TARGETS
from radistill.data.settings import DataSettings
from radistill.diagnosis.selectors import EQUAL_PASSES, All, Curve
from radistill.distillation.settings import DistillSettings, NextTokenSettings, TrainingSettings
from radistill.models.anatomy import Anatomy
from radistill.pipeline.shapes import Batch
from radistill.runs.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}

_OWN_DOCUMENTS = {"align": "alignment", "connect": "connector", "distill": "distillation", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Lengths:
    """How long documents and responses can become under a recipe, in tokens.

    Attributes:
        document: longest document.
        response: most response tokens of one document.
        trained: most tokens of one training document whose logits are learnt.
    """

    document: int
    response: int
    trained: int

    def tokens(self, tokens_per_batch: int, documents: int) -> int:
        """Most padded tokens of one batch: a document that is longer than the limit gets a batch of its own."""
        return min(max(tokens_per_batch, self.document), documents * self.document)

    def batch(self, tokens_per_batch: int, documents: int) -> Batch:
        """A batch of that many tokens whose rows are as long as documents can be."""
        tokens = self.tokens(tokens_per_batch, documents)
        rows = math.ceil(tokens / self.document)
        return Batch(rows, math.ceil(tokens / rows))


def lengths(data: DataSettings, context: int) -> Lengths:
    """Upper bounds that follow from the settings of the data and the context length of the model."""
    document = data.longest(context)
    response = document - 1
    if data.responses.source == "teacher":
        response = min(response, data.responses.max_new_tokens)
    return Lengths(document, response, trained=response if data.loss_on == "response" else document - 1)


@dataclass(frozen=True)
class Work:
    """What the stages have to do for one hybrid.

    Attributes:
        recipe: with a target and a budget.
        base: the model to convert.
        context: tokens that it can read.
    """

    recipe: Recipe
    base: Anatomy
    context: int

    @property
    def number(self) -> int:
        """Bytes of a number in the recipe's format."""
        return BYTES[self.recipe.dtype]

    @property
    def trainings(self) -> Sequence[DistillSettings | NextTokenSettings]:
        """The stages of end-to-end training."""
        return self.recipe.hybrids[0].trainings

    def reads(self, stage: str) -> DataSettings:
        """The data of a stage; `data` is the recipe's, and `store` is the teacher's pass over those of `distill`."""
        return self.recipe.own_data.get("distill" if stage == "store" else stage, self.recipe.data)

    def lengths(self, stage: str) -> Lengths:
        """Upper bounds of what a stage reads; in a step of `distill`, the student may write longer responses."""
        found, distill = lengths(self.reads(stage), self.context), self.recipe.distill
        if stage != "distill" or distill is None or distill.on_policy is None:
            return found
        written = distill.on_policy.max_new_tokens
        document = max(found.document, min(self.context, found.document - 1 + written))
        return Lengths(document, max(found.response, written), max(found.trained, written))

    def tokens(self, stage: str, tokens_per_batch: int) -> int:
        """Most padded tokens of one batch of a stage's training documents."""
        return self.lengths(stage).tokens(tokens_per_batch, self.reads(stage).train)

    def batch(self, stage: str, tokens_per_batch: int) -> Batch:
        """The batch that has so many."""
        return self.lengths(stage).batch(tokens_per_batch, self.reads(stage).train)

    def step_tokens(self, training: TrainingSettings) -> int:
        """Tokens of one optimiser step."""
        return training.gradient_accumulation * self.tokens(training.section, training.tokens_per_batch)

    @property
    def documents(self) -> dict[str, int]:
        """By split; calibration documents that are training documents too are not counted twice."""
        data = self.recipe.data
        own = {"calibration": data.calibration} if data.calibration_from == "own" else {}
        further = {_OWN_DOCUMENTS[stage]: one.train + one.heldout for stage, one in self.recipe.own_data.items()}
        return {"training": data.train, "held-out": data.heldout, **own, **further}

    @property
    def document_tokens(self) -> int:
        """Of the longest document."""
        return max(self.lengths(stage).document for stage in ("data", "align", "connect", "store", "finetune"))

    @property
    def written(self) -> list[tuple[int, DataSettings]]:
        """How many examples of which data the teacher answers, if it answers them all."""
        return [
            (one.train + one.heldout + (one.calibration if one.calibration_from == "own" else 0), one)
            for one in (self.recipe.data, *self.recipe.own_data.values())
            if one.responses.source != "data"
        ]

    @property
    def generated_tokens(self) -> int:
        """Tokens that the teacher writes; 0 if the data brings the responses."""
        return sum(count * data.responses.max_new_tokens for count, data in self.written)

    def retrieval_tokens(self, split: str) -> int:
        """Tokens of the retrieval texts of a split."""
        retrieval = self.recipe.data.retrieval
        return 0 if retrieval is None else sum(retrieval.contexts) * int(getattr(retrieval, split))

    @property
    def calibration_tokens(self) -> int:
        """Tokens in a pass of the diagnosis."""
        return self.recipe.data.calibration * self.lengths("data").document + self.retrieval_tokens("calibration")

    @property
    def passes(self) -> int:
        """Passes of the diagnosis from the first layer on: the full model's, the search's, and of each result."""
        settings, chosen = self.recipe.diagnose, self.recipe.diagnose.selector
        limit = settings.passes or (EQUAL_PASSES if isinstance(chosen, All) else math.inf)
        selectors = chosen.each(limit, settings.by) if isinstance(chosen, All) else [chosen]
        if settings.budget == 0:  # nothing goes, so nothing is searched
            selectors = []
        if settings.tradeoff and not isinstance(chosen, Curve):
            selectors.append(Curve())
        needed = [one.most_passes(len(self.base.attention_layers), settings.sizes) for one in selectors]
        return 1 + sum(1 + math.ceil(min(passes, limit)) for passes in needed)

    @property
    def fits(self) -> list[int]:
        """Blocks by the student that `align` fits them in: those of the hybrid, or one for every attention, among which
        the diagnosis chooses."""
        if self.recipe.align is None:
            return []
        if self.recipe.diagnose.by == "redundancy":
            return [self.recipe.diagnose.sizes[-1]]
        return [len(group) for group in TARGETS[self.recipe.target.kind].students(self.base.attention_layers)]

    @property
    def align_blocks(self) -> int:
        """Blocks that `align` fits."""
        return sum(self.fits)

    @property
    def align_passes(self) -> int:
        """Passes of the base over the training documents, in which `align` records: one for each student."""
        return len(self.fits)

    @property
    def align_tokens(self) -> int:
        """Tokens through each fitted block."""
        align = self.recipe.align
        return 0 if align is None else align.steps * self.tokens("align", align.tokens_per_batch)
