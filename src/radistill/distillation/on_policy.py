"""On-policy data: some batches are responses that the student, as it is at that moment, writes to the same prompts.

A student that only ever reads other models' text never sees where its own mistakes lead. Here the teacher comments on
what the student itself says (GKD, arXiv 2306.13649; for the draft of speculative decoding, DistillSpec, arXiv
2310.08461). No gradient flows through the sampling.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field, model_validator
from transformers import PreTrainedModel

from radistill.files import hash_json
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document


class OnPolicySettings(BaseModel, extra="forbid", allow_inf_nan=False):
    """How often the student's own responses take the place of the documents', and how it writes them."""

    share: float = Field(
        default=0.5, ge=0, le=1, description="probability, at the first step, that a batch is one of its own responses"
    )
    final_share: float | None = Field(
        default=None, ge=0, le=1, description="the same at the last step, linear in between; null is `share`"
    )
    max_new_tokens: int = Field(
        default=128, ge=1, description="longest response; batches are formed so that it fits into `tokens_per_batch`"
    )
    temperature: float = Field(
        default=1.0, ge=0, description="1 samples from the student as it is; 0 takes the likeliest token each time"
    )

    @model_validator(mode="after")
    def _some_share(self) -> "OnPolicySettings":
        if not self.share and not self.final_share:
            raise ValueError("share is 0 throughout; raise share or final_share, or set the section to null")
        return self

    @property
    def always(self) -> bool:
        """Whether no batch of documents is left."""
        return self.share == 1 and self.final_share in (None, 1)

    def share_at(self, step: int, steps: int) -> float:
        """The share at a step, from 1 to `steps`."""
        last = self.share if self.final_share is None else self.final_share
        return self.share + (last - self.share) * (step - 1) / max(1, steps - 1)


class OnPolicy:
    """Decides which batches the student writes, and lets it write them.

    The decision depends on the seed and the position of a batch in the order of training alone, and what is written
    besides on the student's weights: so it is the same after a kill, and in however many processes.
    """

    def __init__(
        self,
        settings: OnPolicySettings,
        student: Model,
        *,
        steps: int,
        batches_per_step: int,
        vocabulary: int,
        seed: int,
    ) -> None:
        """Nothing is written yet.

        Args:
            settings: see `OnPolicySettings`.
            student: gives tokenizer and end tokens; the weights come with each call of `write`.
            steps: optimiser steps of the training.
            batches_per_step: batches in one of them, of all processes together.
            vocabulary: only tokens below it are written: those that the teacher knows too.
            seed: of the decisions and of the sampling.
        """
        self.settings = settings
        self._student = student
        self._steps = steps
        self._batches_per_step = batches_per_step
        self._vocabulary = vocabulary
        self._seed = seed

    def replaces(self, position: int) -> bool:
        """Whether the batch at a position, from 0 in the order of training, is written by the student."""
        share = self.settings.share_at(position // self._batches_per_step + 1, self._steps)
        return self._draw("batch", position) / _DRAWS < share

    def write(self, network: PreTrainedModel, documents: Sequence[Document], position: int) -> list[Document]:
        """The documents' prompts with responses that `network`, in evaluation mode, writes to them.

        A response has one token at least: that of its end. It never reaches beyond the longest text that the model's
        architecture is made for, unless its prompt does.

        Args:
            network: the student's weights as they are now.
            documents: one batch.
            position: of the batch; the random numbers depend on it, on the seed, and on the row.
        """
        prompts = [document.tokens[: document.response_start] for document in documents]
        context = self._student.context_length or _UNLIMITED
        written = generate(
            self._student,
            prompts,
            max_new_tokens=max(1, min(self.settings.max_new_tokens, context - max(map(len, prompts)))),
            temperature=self.settings.temperature,
            seed=self._draw("responses", position),
            batch_size=len(prompts),
            description=None,
            network=network,
            vocabulary=self._vocabulary,
        )
        return [
            Document(document.id, (*prompt, *response), len(prompt))
            for document, prompt, response in zip(documents, prompts, written, strict=True)
        ]

    def _draw(self, purpose: str, position: int) -> int:
        """A random number below `_DRAWS`."""
        return int(hash_json([self._seed, purpose, position])[:_DIGITS], 16)


_DIGITS = 15
_DRAWS = 16**_DIGITS
_UNLIMITED = 2**62
