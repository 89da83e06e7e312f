"""End-to-end training: the student learns the teacher's next-token distributions, or the response tokens themselves."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from radistill.console import note, progress
from radistill.distillation.checkpoints import Checkpoints
from radistill.distillation.checks import Job, check_training, trained_parameters
from radistill.distillation.loop import Training
from radistill.distillation.modes import compiled, compute_format, master_weights, placed, recomputing, training_only
from radistill.distillation.packing import packing
from radistill.distillation.settings import DistillSettings, FinetuneSettings, NextTokenSettings
from radistill.distillation.sharding import sharded
from radistill.distillation.stopping import deferred_interrupt
from radistill.distillation.teacher_store import StoredTeacher
from radistill.distillation.tracking import tracked
from radistill.effects import counted
from radistill.files import hash_json
from radistill.mixers import use_fast_paths
from radistill.models.endings import learn_endings
from radistill.models.generation import evaluating, seeded
from radistill.models.loading import Model
from radistill.models.number_formats import warn_if_slow
from radistill.models.sequences import Document, hash_documents
from radistill.processes import is_main, join


@dataclass(frozen=True)
class DistillResult:
    """What a distillation or a fine-tuning did; its JSON form is `distill.json` or `finetune.json`.

    Attributes:
        steps: optimiser steps.
        kept_step: the step whose weights the student has.
        tokens: tokens that went through the student in training, prompts included, padding not.
        response_tokens: those of them that carried loss.
        seconds: wall time of the training, held-out measures and, if the run was resumed, its earlier parts included.
        curve: for each step "step", "tokens" (so far), "loss" (mean over the step's response tokens; for a KL in nats),
            "on_policy" (share of those tokens that the student wrote), "learning_rate" (of the new blocks),
            "gradient_norm" (of all trained weights, before clipping).
        evaluations: "step", "tokens" (so far), "kl" (held-out KL(teacher || student), nats per response token),
            "agreement" (share of response tokens with the same most likely token), "sampled_acceptance" (mean of
            sum_v min(p_v, q_v), as if the student drafted for the teacher at temperature 1), "cross_entropy" (the
            student's, nats per response token), at step 0, every `eval_steps` and at the end.
        heldout_kl: what that KL is over: "full" is the vocabulary; "top-k" the tokens that a stored teacher kept and
            the rest as one, which makes it a lower bound of the other.
    """

    steps: int
    kept_step: int
    tokens: int
    response_tokens: int
    seconds: float
    curve: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    heldout_kl: Literal["full", "top-k"] = "full"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def distill(
    student: Model,
    teacher: Model | StoredTeacher,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: DistillSettings | None = None,
    *,
    new_parameters: Collection[str],
    folder: Path | None = None,
    seed: int = 0,
    reference: Model | None = None,
) -> DistillResult:
    """Train `student.network` in place to predict what the teacher predicts.

    With a `folder`, the run survives any kill: called again with the same arguments, the student again as it was at the
    start, it goes on from the last complete checkpoint and ends, on a CPU with the same number of threads, with the
    same curve and weights as a run that was never interrupted. The last checkpoint stays until the caller, who knows
    when the student is saved, calls `remove_checkpoints(folder)`; until then a further call returns its result at once.
    The student comes out in the number format it was loaded in, and is trained in float32 unless `precision` says
    otherwise.

    The vision encoder of a student that reads images is never trained: a drafter that shares its target's has it still.

    Started in several processes, by torchrun or `accelerate launch`, all of which call this with the same arguments,
    it shares each optimiser step among them: with DDP, or with FSDP2 where the launcher says so. All of them end with
    the trained student.

    Args:
        student: the hybrid; on return in the mode (training or evaluation) in which it came.
        teacher: the model to imitate, with the student's tokenizer; never changed. It may be on another device. With
            `settings.teacher_store`, it is what `store_teacher` has written of `train` and `heldout`.
        train: documents; the loss is on their response tokens.
        heldout: documents that progress is measured on.
        settings: see `DistillSettings`.
        new_parameters: names, as in `student.network.named_parameters()`, that train at `new_block_learning_rate`.
        folder: for checkpoints, for the batch of a failed step and for TensorBoard; None keeps nothing.
        seed: of the order of batches.
        reference: what tells the tokens of `settings.select`, on the student's device; never changed.

    Raises:
        RadistillError: if the tokenizers differ, settings contradict one another, hidden states of different width are
            to be compared, there is nothing to train or to train on, the processes cannot share a step evenly, a loss
            or gradient is not finite (the message names step and documents), or a checkpoint cannot be written.
        KeyboardInterrupt: after Ctrl-C, once the running step is finished and saved.
    """
    settings = settings or DistillSettings()
    return _train(Job(student, teacher, train, heldout, settings, new_parameters, seed, folder, reference))


def finetune(
    student: Model,
    teacher: Model,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: NextTokenSettings | None = None,
    *,
    new_parameters: Collection[str],
    folder: Path | None = None,
    seed: int = 0,
) -> DistillResult:
    """Train `student.network` in place by cross-entropy, in nats, on the response tokens of `train`.

    This is next-token training, as pretraining and SFT do it, and the last of the stages of RADLADS (arXiv 2505.03005).
    Arguments, result, errors, checkpoints and processes are those of `distill`. The teacher takes no part in the
    training: held-out KL and agreement to it show how far the student drifts away from it.
    """
    return _train(Job(student, teacher, train, heldout, settings or FinetuneSettings(), new_parameters, seed, folder))


def _train(job: Job) -> DistillResult:
    check_training(job)
    learn_endings(job.student, job.train)
    student, teacher, settings = job.student, job.teacher, job.settings
    processes = join(student.network.device.type)
    settings.check_processes(processes.count, processes.sharded)
    # The weights change below and may have changed before: what was computed of them is out of date.
    student.__dict__.pop("fingerprint", None)
    checkpoints = None if job.folder is None else Checkpoints(job.folder, training_key(job), processes)
    student.__dict__.pop("fingerprint", None)
    trained: PreTrainedModel = student.network
    taught = teacher if isinstance(teacher, StoredTeacher) else teacher.network
    names = set(trained_parameters(job))
    compute = compute_format(settings.precision, trained.dtype)
    with ExitStack() as stack:
        stack.enter_context(training_only(trained, names))
        stack.enter_context(master_weights(trained, settings.precision))
        if compute and compute != student.network.dtype:
            warn_if_slow(compute, trained.device)
        if isinstance(taught, PreTrainedModel):
            stack.enter_context(evaluating(taught))
            stack.enter_context(placed(taught, settings.teacher_device))
        if job.reference is not None:
            stack.enter_context(evaluating(job.reference.network))
        for name, model in (("student", student), ("teacher", teacher), ("reference", job.reference)):
            if isinstance(model, Model):
                new = job.new_parameters if model is student else ()
                who = f"{settings.section}: the {name}"
                stack.enter_context(packing(model, who, compute, new, wanted=not settings.compile))
        if processes.sharded:
            if isinstance(teacher, Model) and isinstance(taught, PreTrainedModel) and taught.device == trained.device:
                taught = stack.enter_context(sharded(taught, teacher.anatomy, processes.count, compute))
            trained = stack.enter_context(sharded(trained, student.anatomy, processes.count, compute))
        stack.enter_context(recomputing(trained, settings.gradient_checkpointing))
        use_fast_paths(trained)
        stack.enter_context(compiled(trained, student.anatomy, settings.compile))
        if isinstance(teacher, Model) and isinstance(taught, PreTrainedModel):
            stack.enter_context(compiled(taught, teacher.anatomy, settings.compile))
        stack.enter_context(seeded(trained.device, job.seed))  # for dropout, where a model has it
        training = Training(job, trained, taught, compute=compute, checkpoints=checkpoints, processes=processes)
        latest = processes.decide(lambda: checkpoints.latest() if checkpoints else None)
        if latest:
            training.restore(latest)
        if training.finished:
            note(f"{settings.section}: all {training.log.step} steps were done before, taken from {latest}")
        else:
            _run(training, job, latest, checkpoints is not None and checkpoints.others())
        training.keep()
        if trained is not student.network:
            student.network.load_state_dict(training.whole_weights(), strict=False)
    return DistillResult(
        steps=training.log.step,
        kept_step=training.kept_step,
        heldout_kl="top-k" if isinstance(teacher, StoredTeacher) else "full",
        **asdict(training.log),
    )


def _run(training: Training, job: Job, latest: Path | None, others: bool) -> None:
    """Take the steps that are left, and say so; `others` if there are checkpoints of another run in the folder."""
    settings, folder = job.settings, job.folder
    section, done = settings.section, training.log.step
    note(training.outline())
    if latest:
        note(f"{section}: going on after step {done} of {settings.steps}, from {latest}")
    elif others:
        note(f"{section}: starting anew; the checkpoints in {folder} are of other settings, data or models")
    with (
        progress(section, settings.steps, "steps", done=done) as advance,
        deferred_interrupt("stopping after this step; press Ctrl-C again to stop now") as interrupted,
        tracked(settings.report_to if is_main() else "none", folder, done, settings.model_dump(mode="json")) as report,
    ):
        stopped = training.run(interrupted, advance, report)
    step = training.log.step
    if stopped:
        way_on = f"saved in {folder}; the same command goes on from there" if folder else "nothing was kept"
        note(f"{section}: stopped after step {step} of {settings.steps}, {way_on}")
        raise KeyboardInterrupt
    if step < settings.steps:
        note(f"{section}: ended at step {step} of {settings.steps}, out of patience")


def training_key(job: Job) -> str:
    """Hash of everything that the result depends on, the start weights included."""
    # Batches are formed in the order of the ids, which are no part of the text: they may be a path as someone spelt it.
    texts = [hash_documents(sorted(part, key=lambda document: document.id)) for part in (job.train, job.heldout)]
    return hash_json(
        [
            job.student.fingerprint,
            job.teacher.key if isinstance(job.teacher, StoredTeacher) else job.teacher.fingerprint,
            texts,
            job.settings.section,
            # The key of a store covers its settings, and the rate that a search has chosen stands in its own field.
            counted(job.settings, "teacher_store", "rate_search"),
            sorted(job.new_parameters),
            job.seed,
            *([] if job.reference is None else [job.reference.fingerprint]),
        ]
    )
