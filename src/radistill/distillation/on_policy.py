"""On-policy data: some batches are responses that the student, as it is at that moment, writes to the same prompts.

A student that only ever reads other models' text never sees where its own mistakes lead. Here the teacher comments on
what the student itself says (GKD, arXiv 2306.13649; for the draft of speculative decoding, DistillSpec, arXiv
2310.08461). No gradient flows through the sampling.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from radistill.distillation.checks import Job
from radistill.distillation.settings import OnPolicySettings
from radistill.files import hash_json
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document


class OnPolicy:
    """Decides which batches the student writes, and lets it write them.

    The decision depends on the seed and the position of a batch in the order of training alone, and what is written
    besides on the student's weights: so it is the same after a kill, and in however many processes.
    """

    def __init__(self, job: Job, settings: OnPolicySettings) -> None:
        """Nothing is written yet; `settings` are those of the job, which has some."""
        assert isinstance(job.teacher, Model)  # the settings are checked for it
        self._settings, self._job = settings, job
        # Only tokens below it are written: those that the teacher knows too.
        self._vocabulary = job.teacher.anatomy.vocab_size

    def replaces(self, position: int) -> bool:
        """Whether the batch at a position, from 0 in the order of training, is written by the student."""
        training = self._job.settings
        share = self._settings.share_at(position // training.gradient_accumulation + 1, training.steps)
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
        context = self._job.student.context_length or _UNLIMITED
        written = generate(
            self._job.student,
            prompts,
            max_new_tokens=max(1, min(self._settings.max_new_tokens, context - max(map(len, prompts)))),
            temperature=self._settings.temperature,
            seed=self._draw("responses", position),
            batch_size=len(prompts),
            description=None,
            network=network,
            vocabulary=self._vocabulary,
            images=[document.images for document in documents],
        )
        return [
            Document(document.id, (*prompt, *response), len(prompt), document.images)
            for document, prompt, response in zip(documents, prompts, written, strict=True)
        ]

    def _draw(self, purpose: str, position: int) -> int:
        """A random number below `_DRAWS`."""
        return int(hash_json([self._job.seed, purpose, position])[:_DIGITS], 16)


_DIGITS = 15
_DRAWS = 16**_DIGITS
_UNLIMITED = 2**62
