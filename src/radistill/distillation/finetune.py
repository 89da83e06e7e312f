"""Next-token fine-tuning: the student learns the response tokens themselves, as pretraining and SFT do.

The last of the stages of RADLADS (arXiv 2505.03005): after distillation, without a teacher in the loss.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from radistill.distillation.distill import DistillResult, train_student
from radistill.distillation.finetune_settings import FinetuneSettings
from radistill.models.loading import Model
from radistill.models.sequences import Document


def finetune(
    student: Model,
    teacher: Model,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: FinetuneSettings | None = None,
    *,
    new_parameters: Collection[str],
    folder: Path | None = None,
    seed: int = 0,
) -> DistillResult:
    """Train `student.network` in place by cross-entropy, in nats, on the response tokens of `train`.

    Arguments, result, errors, checkpoints and processes are those of `distill`. The teacher takes no part in the
    training: held-out KL and agreement to it show how far the student drifts away from it.
    """
    return train_student(
        student,
        teacher,
        train,
        heldout,
        settings or FinetuneSettings(),
        new_parameters=new_parameters,
        folder=folder,
        seed=seed,
    )
