"""End-to-end distillation: the student learns the teacher's next-token distributions on response tokens."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from radistill.console import note, progress
from radistill.distillation.checkpoints import Checkpoints
from radistill.distillation.compilation import check_compiler, compiled
from radistill.distillation.distill_settings import DistillSettings, TrainingSettings
from radistill.distillation.finetune_settings import FinetuneSettings
from radistill.distillation.interruption import deferred_interrupt
from radistill.distillation.losses import check_same_width
from radistill.distillation.on_policy import OnPolicy
from radistill.distillation.placement import placed
from radistill.distillation.precision import master_weights
from radistill.distillation.recomputation import recomputing
from radistill.distillation.sharding import sharded
from radistill.distillation.stopping import out_of_patience
from radistill.distillation.teacher_store import StoredTeacher
from radistill.distillation.teacher_store.layout import tokenizer_hash
from radistill.distillation.tracking import check_tracker, tracked
from radistill.distillation.trainer import DistillTrainer, Pace
from radistill.distillation.vocabulary import check_same_tokenizer
from radistill.errors import RadistillError
from radistill.files import hash_json
from radistill.mixers import use_fast_paths
from radistill.models.loading import DTYPES, Model, check_device
from radistill.models.number_formats import warn_if_slow
from radistill.models.sequences import Document
from radistill.processes import join

# Settings that change how a run is watched or kept, or where it computes, not what comes out of it.
_WITHOUT_EFFECT = {"save_seconds", "report_to", "teacher_device"}


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
            "agreement" (share of response tokens with the same most likely token), "cross_entropy" (the student's, nats
            per response token), at step 0, every `eval_steps` and at the end.
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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DistillResult":
        """The inverse of `to_json`."""
        return cls(**data)


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
) -> DistillResult:
    """Train `student.network` in place to predict what the teacher predicts.

    With a `folder`, the run survives any kill: called again with the same arguments, the student again as it was at the
    start, it goes on from the last complete checkpoint and ends, on a CPU with the same number of threads, with the
    same curve and weights as a run that was never interrupted. The last checkpoint stays until the caller, who knows
    when the student is saved, calls `remove_checkpoints(folder)`; until then a further call returns its result at once.
    The student comes out in the number format it was loaded in; `precision` says what it is trained in.

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

    Raises:
        RadistillError: if the tokenizers differ, settings contradict one another, hidden states of different width are
            to be compared, there is nothing to train or to train on, the processes cannot share a step evenly, a loss
            or gradient is not finite (the message names step and documents), or a checkpoint cannot be written.
        KeyboardInterrupt: after Ctrl-C, once the running step is finished and saved.
    """
    return train_student(
        student,
        teacher,
        train,
        heldout,
        settings or DistillSettings(),
        new_parameters=new_parameters,
        folder=folder,
        seed=seed,
    )


def train_student(
    student: Model,
    teacher: Model | StoredTeacher,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: DistillSettings | FinetuneSettings,
    *,
    new_parameters: Collection[str],
    folder: Path | None,
    seed: int,
) -> DistillResult:
    """What `distill` and `finetune` share, which is all but what `settings` say."""
    _check(student, teacher, train, heldout, settings, new_parameters, folder)
    processes = join(student.network.device.type)
    settings.check_processes(processes.count, processes.sharded)
    # The weights change below and may have changed before: what was computed of them is out of date.
    student.__dict__.pop("fingerprint", None)
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(folder, _key(student, teacher, train, heldout, settings, new_parameters, seed))
        student.__dict__.pop("fingerprint", None)
    taught = teacher if isinstance(teacher, StoredTeacher) else teacher.network
    with _prepared(student.network, taught, new_parameters, settings), ExitStack() as stack:
        trained = student.network
        stack.enter_context(master_weights(trained, settings.precision))
        if settings.precision:
            warn_if_slow(DTYPES[settings.precision], trained.device)
        if isinstance(taught, PreTrainedModel):
            stack.enter_context(placed(taught, settings.teacher_device))
        if processes.sharded:
            compute = DTYPES[settings.precision] if settings.precision else None
            if isinstance(teacher, Model) and isinstance(taught, PreTrainedModel) and taught.device == trained.device:
                taught = stack.enter_context(sharded(taught, teacher.anatomy, processes.count, compute))
            trained = stack.enter_context(sharded(trained, student.anatomy, processes.count, compute))
        stack.enter_context(recomputing(trained, settings.gradient_checkpointing))
        use_fast_paths(trained)
        stack.enter_context(compiled(trained, student.anatomy, settings.compile))
        if isinstance(teacher, Model) and isinstance(taught, PreTrainedModel):
            stack.enter_context(compiled(taught, teacher.anatomy, settings.compile))
        trainer = DistillTrainer(
            trained,
            taught,
            train,
            heldout,
            settings,
            new_parameters=new_parameters,
            pad_token_id=student.pad_token_id,
            folder=folder,
            checkpoints=checkpoints,
            seed=seed,
            on_policy=_on_policy(student, teacher, settings, seed),
            processes=processes,
        )
        _train(trainer, settings, folder, checkpoints)
        if trained is not student.network:
            student.network.load_state_dict(trainer.whole_weights(), strict=False)
    return _result(trainer.state.log_history, trainer.kept_step, isinstance(teacher, StoredTeacher))


def _train(
    trainer: DistillTrainer,
    settings: DistillSettings | FinetuneSettings,
    folder: Path | None,
    checkpoints: Checkpoints | None,
) -> None:
    processes, section = trainer.processes, settings.section
    latest = processes.decide(lambda: checkpoints.latest() if checkpoints else None)
    state = TrainerState.load_from_json(str(latest / TRAINER_STATE_NAME)) if latest else TrainerState()
    done = state.global_step
    if latest and (done >= settings.steps or out_of_patience(state.log_history, settings.patience, settings.measure)):
        note(f"{section}: all {done} steps were done before, taken from {latest}")
        trainer.restore(latest)
        trainer.keep()
        return
    note(_outline(trainer, settings))
    if latest:
        note(f"{section}: going on after step {done} of {settings.steps}, from {latest}")
    elif checkpoints and checkpoints.others():
        note(f"{section}: starting anew; the checkpoints in {folder} are of other settings, data or models")
    with ExitStack() as stack:
        advance = stack.enter_context(progress(section, settings.steps, "steps", done=done))
        interrupted = stack.enter_context(
            deferred_interrupt("stopping after this step; press Ctrl-C again to stop now")
        )
        pace = Pace(trainer, interrupted, advance)
        trainer.add_callback(pace)
        if processes.is_main:
            tracker = stack.enter_context(tracked(settings.report_to, folder, done))
            if tracker is not None:
                trainer.add_callback(tracker)
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    if pace.stopped:
        step = trainer.state.global_step
        way_on = f"saved in {folder}; the same command goes on from there" if folder else "nothing was kept"
        note(f"{section}: stopped after step {step} of {settings.steps}, {way_on}")
        raise KeyboardInterrupt
    if trainer.state.global_step < settings.steps:
        note(f"{section}: ended at step {trainer.state.global_step} of {settings.steps}, out of patience")
    trainer.keep()


def _on_policy(
    student: Model, teacher: Model | StoredTeacher, settings: DistillSettings | FinetuneSettings, seed: int
) -> OnPolicy | None:
    if settings.on_policy is None:
        return None
    assert isinstance(teacher, Model)  # the settings are checked for it
    return OnPolicy(
        settings.on_policy,
        student,
        steps=settings.steps,
        batches_per_step=settings.gradient_accumulation,
        vocabulary=teacher.anatomy.vocab_size,
        seed=seed,
    )


def _check(
    student: Model,
    teacher: Model | StoredTeacher,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: DistillSettings | FinetuneSettings,
    new_parameters: Collection[str],
    folder: Path | None,
) -> None:
    section = settings.section
    if wrong := settings.contradiction:
        raise RadistillError(wrong)
    vocabulary = _check_teacher(student, teacher, settings)
    for name, documents in (("train", train), ("heldout", heldout)):
        if not documents:
            raise RadistillError(f"{section}: there are no documents in {name}")
        for document in documents:
            if not 0 <= min(document.tokens) <= max(document.tokens) < vocabulary:
                raise RadistillError(
                    f"{section}: document {document.id} in {name} has tokens outside 0 to {vocabulary - 1}; "
                    "it was made with another tokenizer"
                )
    parameters = dict(student.network.named_parameters())
    unknown = sorted(set(new_parameters) - parameters.keys())
    if unknown:
        raise RadistillError(f"{section}: the student has no parameter {unknown[0]!r}")
    if not (new_parameters and settings.trains(new=True)) and not settings.trains(new=False):
        which = "new_block_learning_rate and other_learning_rate are 0"
        if settings.trains(new=True):
            which = "there are no new blocks and other_learning_rate is 0"
        raise RadistillError(f"{section}: nothing to train: {which}; set a rate above 0")
    if settings.report_to == "tensorboard" and folder is None:
        raise RadistillError(f"{section}: report_to tensorboard needs a folder to write to")
    check_tracker(settings.report_to, section)
    if settings.compile:
        check_compiler(student.network.device, section)
    of_teacher = _weights(teacher)
    trained = [name for name in parameters if settings.trains(name in new_parameters)]
    shared = [name for name in trained if parameters[name].data_ptr() in of_teacher]
    if shared:
        raise RadistillError(f"{section}: student and teacher share the weight {shared[0]}; give each its own copy")


def _check_teacher(student: Model, teacher: Model | StoredTeacher, settings: DistillSettings | FinetuneSettings) -> int:
    """Refuse a teacher that this student cannot learn from; returns how many tokens both know."""
    if isinstance(teacher, StoredTeacher) and not settings.taught:
        raise RadistillError(
            f"{settings.section}: the teacher is a stored one, but the student is measured against the model itself; "
            "give it that"
        )
    if isinstance(teacher, StoredTeacher) != (settings.teacher_store is not None):
        given, way_out = "a model", "give it what store_teacher has written"
        if isinstance(teacher, StoredTeacher):
            given, way_out = "a stored one", "give it a section"
        raise RadistillError(
            f"distill: teacher_store is {'set' if settings.teacher_store else 'null'}, but the teacher is {given}; "
            f"{way_out}"
        )
    if settings.teacher_device is not None:
        check_device(settings.teacher_device)
    if isinstance(teacher, Model):
        check_same_tokenizer(teacher, student)
        if settings.hidden is not None:
            check_same_width(teacher.anatomy.hidden_size, student.anatomy.hidden_size)
        return min(model.anatomy.vocab_size for model in (student, teacher))
    if teacher.tokenizer != tokenizer_hash(student.tokenizer) or teacher.vocabulary > student.anatomy.vocab_size:
        raise RadistillError(
            f"{teacher.folder}: the stored teacher has another tokenizer than the student; choose a teacher of the "
            "student's family"
        )
    return teacher.vocabulary


def _weights(teacher: Model | StoredTeacher) -> set[int]:
    """Where the teacher's weights are in memory."""
    return {p.data_ptr() for p in teacher.network.parameters()} if isinstance(teacher, Model) else set()


def _key(
    student: Model,
    teacher: Model | StoredTeacher,
    train: Sequence[Document],
    heldout: Sequence[Document],
    settings: DistillSettings | FinetuneSettings,
    new_parameters: Collection[str],
    seed: int,
) -> str:
    """Hash of everything that the result depends on, the start weights included."""
    documents = [[[d.id, d.tokens, d.response_start] for d in part] for part in (train, heldout)]
    return hash_json(
        [
            student.fingerprint,
            # The key of a store covers its settings too.
            teacher.key if isinstance(teacher, StoredTeacher) else teacher.fingerprint,
            documents,
            settings.section,
            settings.model_dump(mode="json", exclude={*_WITHOUT_EFFECT, "teacher_store"}),
            sorted(new_parameters),
            seed,
        ]
    )


@contextmanager
def _prepared(
    student: PreTrainedModel,
    teacher: PreTrainedModel | StoredTeacher,
    new_parameters: Collection[str],
    settings: TrainingSettings,
) -> Iterator[None]:
    """Freeze what is not trained, put the teacher into evaluation mode, and undo all that Trainer changes."""
    parameters = dict(student.named_parameters())
    trainable = {name: parameter.requires_grad for name, parameter in parameters.items()}
    networks = [network for network in (student, teacher) if isinstance(network, PreTrainedModel)]
    modes = [(network, network.training) for network in networks]
    use_cache = student.config.use_cache
    verbosity = transformers.logging.get_verbosity()
    for name, parameter in parameters.items():
        parameter.requires_grad_(settings.trains(name in new_parameters))
    for network in networks[1:]:
        network.eval()
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None
        for network, training in modes:
            network.train(training)
        student.config.use_cache = use_cache
        transformers.logging.set_verbosity(verbosity)


def _outline(trainer: DistillTrainer, settings: DistillSettings | FinetuneSettings) -> str:
    """What the settings amount to, before the first step."""
    lengths = [sum(len(document.tokens) for document in group) for group in trainer.groups]
    own = [] if trainer.on_policy is None else list(filter(trainer.on_policy.replaces, range(len(trainer.order))))
    tokens = sum(lengths[index] for index in trainer.order) - sum(lengths[trainer.order[place]] for place in own)
    sizes = {name: parameter.numel() for name, parameter in trainer.student.named_parameters()}
    new = sum(sizes[name] for name in trainer.new_parameters)
    rest = sum(sizes.values()) - new
    at_rates = [
        f"at rate {rate:g}" if rate > 0 else "frozen"
        for rate in (settings.new_block_learning_rate, settings.other_learning_rate)
    ]
    of, written = "", ""
    if settings.on_policy is not None:
        of, written = (
            " of documents",
            f" and {len(own)} of {len(trainer.order)} batches that the student writes itself, up to "
            f"{settings.on_policy.max_new_tokens} tokens a response at temperature {settings.on_policy.temperature:g}",
        )
    return (
        f"{settings.section}: {settings.steps} steps, {tokens:,} tokens{of} ({tokens / sum(lengths):.1f} epochs of "
        f"{len(lengths)} batches){written}; {new:,} new parameters {at_rates[0]}, {rest:,} others {at_rates[1]}"
        + ("; held-out KL is over the stored tokens and the rest as one" if settings.teacher_store else "")
    )


def _result(history: Sequence[Mapping[str, Any]], kept_step: int, stored: bool) -> DistillResult:
    curve = [
        {
            "step": entry["step"],
            "tokens": entry["tokens"],
            "loss": entry["loss"],
            "on_policy": entry["on_policy"],
            "learning_rate": entry["learning_rate"],
            "gradient_norm": entry["grad_norm"],
        }
        for entry in history
        if "loss" in entry
    ]
    evaluations = [
        {
            "step": entry["step"],
            "tokens": entry["tokens"],
            "kl": entry["eval_kl"],
            "agreement": entry["eval_agreement"],
            "cross_entropy": entry["eval_cross_entropy"],
        }
        for entry in history
        if "eval_kl" in entry
    ]
    last = history[-1]
    return DistillResult(
        steps=len(curve),
        kept_step=kept_step,
        tokens=last["tokens"],
        response_tokens=last["response_tokens"],
        seconds=last["seconds"],
        curve=curve,
        evaluations=evaluations,
        heldout_kl="top-k" if stored else "full",
    )
