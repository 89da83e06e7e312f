"""transformers' Trainer, taught to distil: loss, parameter groups, held-out measures and whole checkpoints."""

import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from radistill.console import note
from radistill.distillation.checkpoints import Checkpoints
from radistill.distillation.compilation import uncompiled
from radistill.distillation.distill_settings import DistillSettings, TrainingSettings
from radistill.distillation.finetune_settings import FinetuneSettings
from radistill.distillation.heldout import Distance, compare, compare_with_known
from radistill.distillation.losses import TopK, chunked_sum
from radistill.distillation.on_policy import OnPolicy
from radistill.distillation.precision import computing
from radistill.distillation.sharding import release, slice_like, sliced_state, whole, whole_state
from radistill.distillation.stopping import Divergence, Measure, best_step, out_of_patience
from radistill.distillation.teacher_store import StoredTeacher
from radistill.errors import RadistillError
from radistill.files import write_json
from radistill.models.logits import ResponseStates, at_output, response_states
from radistill.models.sequences import Batch, Document, batches, collate
from radistill.processes import ALONE, Processes

IGNORED_LABEL = -100
_WEIGHTS = "trainable.safetensors"
_MEASURES: dict[Measure, str] = {"kl": "KL", "cross_entropy": "cross-entropy"}


class DistillTrainer(Trainer):
    """Trains a student's trainable parameters on a teacher's logits.

    Everything that a resumed run must know beyond weights, optimiser and schedule is in Trainer's own `log_history`:
    losses, held-out measures, and with each of them the tokens and seconds spent so far.

    With `on_policy`, the student writes its batches when the step that they belong to begins.

    Several processes share the batches of each optimiser step: of a step with the batches a, b, c and d, the first of
    two processes has a and c. So a step, its loss and its gradient are what they are in one process, up to the order
    in which floats are added. A checkpoint holds whole weights and moments, however they were split.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | StoredTeacher,
        train: Sequence[Document],
        heldout: Sequence[Document],
        settings: DistillSettings | FinetuneSettings,
        *,
        new_parameters: Collection[str],
        pad_token_id: int,
        folder: Path | None,
        checkpoints: Checkpoints | None,
        seed: int,
        on_policy: OnPolicy | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Build the trainer; nothing runs yet.

        Args:
            student: its parameters' `requires_grad` say what is trained; with several processes perhaps sharded.
            teacher: in evaluation mode; it may be on another device. Or what it has left on disk.
            train: documents to train on, in batches whose order the seed decides.
            heldout: documents to measure on.
            settings: of the stage that this is.
            new_parameters: names of the parameters that get `new_block_learning_rate`.
            pad_token_id: what fills short rows.
            folder: where a batch that gives no finite loss is written to; None writes none.
            checkpoints: None saves none.
            seed: of the order of batches.
            on_policy: which batches the student writes; None is none.
            processes: who train together; their number divides `gradient_accumulation`.
        """
        self.processes = processes
        self.student = student
        self.teacher = teacher
        self.heldout = heldout
        self.settings = settings
        self.new_parameters = frozenset(new_parameters)
        self.on_policy = on_policy
        room = 0 if on_policy is None else on_policy.settings.max_new_tokens
        self.groups = batches(train, settings.tokens_per_batch, max_new_tokens=room)
        self.order = batch_order(len(self.groups), settings.steps * settings.gradient_accumulation, seed)
        self.pad_token_id = pad_token_id
        self.folder = folder
        self.checkpoints = checkpoints
        self._running: dict[int, Sequence[Document]] = {}
        self._totals = {"tokens": 0, "response_tokens": 0}
        self._own_share = 0.0
        # While a sharded weight is whole, another parameter stands in its place in the network.
        self._trained = [(name, tensor) for name, tensor in student.named_parameters() if tensor.requires_grad]
        self._remembered: list[Tensor] = []
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        super().__init__(
            model=student,
            args=_arguments(settings, student, folder, checkpoints, seed, processes),
            data_collator=partial(_collate_group, groups=self.groups, pad_token_id=pad_token_id),
            train_dataset=self.order,
            eval_dataset=heldout,
        )
        self.remove_callback(PrinterCallback)
        # Trainer then counts response tokens over the whole optimiser batch, and leaves the scale of the loss to us.
        self.model_accepts_loss_kwargs = True

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        """The dataset is already the shuffled order over all epochs, so resuming only has to skip."""
        return SequentialSampler(self.order)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """This process's batches of the next step, those that the student writes included, and what they amount to."""
        self._running = {}
        found = super().get_batch_samples(self._step_batches(epoch_iterator, num_batches), num_batches, device)
        sums = torch.zeros(3, dtype=torch.long)
        for position, documents in self._running.items():
            tokens = sum(len(document.tokens) for document in documents)
            responses = tokens - sum(document.response_start for document in documents)
            sums += torch.tensor([tokens, responses, responses * self._is_own(position)])
        tokens, responses, own = self.processes.add(sums).tolist()
        self._totals["tokens"] += tokens
        self._totals["response_tokens"] += responses
        self._own_share = own / responses
        return found

    def _step_batches(self, batches: Iterator[dict[str, Tensor]], count: int) -> Iterator[dict[str, Tensor]]:
        """The next `count` batches of this process, with their position in the order of all."""
        first = self.state.global_step * self.settings.gradient_accumulation + self.processes.index
        for place, batch in enumerate(islice(batches, count)):
            position = first + place * self.processes.count
            documents: Sequence[Document] = self.groups[int(batch["group"])]
            if self.on_policy is not None and self._is_own(position):
                with computing(self.settings.precision, self.student.device), uncompiled(self.settings.compile):
                    documents = self.on_policy.write(self.student, documents, position)
                batch = batch | _labelled(documents, self.pad_token_id, self.student.device)
            self._running[position] = documents
            yield batch | {"position": torch.tensor(position)}

    def _is_own(self, position: int) -> bool:
        """Whether the student writes the batch at a position in the order of training."""
        return self.on_policy is not None and self.on_policy.replaces(position)

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The settings' loss, summed over the batch's response tokens, over those of the whole optimiser step."""
        assert num_items_in_batch is not None  # Trainer counts them, because the batch has labels
        position = int(inputs["position"])
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != IGNORED_LABEL)
        teacher = self._of_teacher(int(inputs["group"]), batch)
        # `model` is the student, perhaps wrapped for several processes; it is called the same way.
        with computing(self.settings.precision, self.student.device):
            total = at_output(
                cast(PreTrainedModel, model), batch, partial(self._total, self._is_own(position), teacher)
            )
        # Gradients are averaged over processes, but each has only its own terms of the sum.
        loss = total * self.processes.count / num_items_in_batch
        losses = self.processes.collect((position, loss.item()))
        if refused := [(place, value) for place, value in losses if not math.isfinite(value)]:
            raise self.refusal(f"the loss is {refused[0][1]}", [place for place, _ in refused])
        return (loss, None) if return_outputs else loss

    def _of_teacher(self, group: int, batch: Batch) -> ResponseStates | TopK | None:
        """What the teacher says to a batch, which is that of a group; None where the loss does not ask."""
        if not self.settings.taught:
            return None
        if isinstance(self.teacher, StoredTeacher):
            return self.teacher.of(self.groups[group]).to(self.student.device)
        with torch.no_grad(), computing(self.settings.precision, self.teacher.device):
            return response_states(self.teacher, Batch(*(part.to(self.teacher.device) for part in batch)))

    def _total(self, own: bool, teacher: ResponseStates | TopK | None, student: ResponseStates) -> Tensor:
        """Sum over the tokens of what the settings ask for; `own` if the student wrote them."""
        total = chunked_sum(self.settings.token_loss(own), teacher, student)
        if self.settings.hidden is not None:
            assert isinstance(teacher, ResponseStates)  # the settings are checked for it
            of_teacher = teacher.hidden.to(student.hidden.device)
            total = total + self.settings.hidden.weight * self.settings.hidden(of_teacher, student.hidden).sum()
        return total

    def refusal(self, what: str, positions: Sequence[int] | None = None, step: int | None = None) -> RadistillError:
        """The error for a step that went wrong; writes its documents down first. All processes must ask for it.

        Args:
            what: what is wrong.
            positions: of the batches to blame, in the order of training; None is all of the step.
            step: from 1; None is the one that runs.
        """
        step = step or self.state.global_step + 1
        running = {place: group for part in self.processes.collect(self._running) for place, group in part.items()}
        documents = [document for place in positions or sorted(running) for document in running[place]]
        names = ", ".join(document.id for document in documents)
        if self.folder is not None:
            path = self.folder / "failed_batch.json"
            if self.processes.is_main:
                write_json(path, {"step": step, "reason": what, "documents": [asdict(d) for d in documents]})
            names += f" (written to {path})"
        return RadistillError(
            f"{self.settings.section}: {what} at step {step}, on the documents {names}; "
            "lower the learning rates or take these documents out"
        )

    def gradient_norm(self) -> Tensor:
        """Norm of the gradients of all trained weights, as they are now; all processes must ask for it together."""
        gradients = [tensor.grad for _, tensor in self._trained if tensor.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients))

    # ---- optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters: new blocks at their own rate; only matrices decay."""
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.student)
            self.optimizer = kind(parameter_groups(self.student, self.new_parameters, self.settings), **arguments)
        return self.optimizer

    # ---- measures and log ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the student on the held-out documents."""
        measured = self._distance()
        release(self.student)
        metrics = {
            "eval_kl": measured.kl,
            "eval_agreement": measured.agreement,
            "eval_cross_entropy": measured.student_nll,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _distance(self) -> Distance:
        """From teacher to student, on the held-out documents."""
        precision, most = self.settings.precision, self.settings.tokens_per_batch
        with computing(precision, self.student.device):
            if isinstance(self.teacher, StoredTeacher):
                return compare_with_known(
                    self.teacher.of, self.student, self.heldout, self.pad_token_id, most, self.processes
                )
            with computing(precision, self.teacher.device):
                return compare(
                    self.teacher, self.student, self.heldout, self.pad_token_id, most, processes=self.processes
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the totals that a resumed run continues from."""
        if "loss" in logs:
            logs = {**logs, "on_policy": self._own_share}
        seconds = round(self._seconds_before + time.perf_counter() - self._started, 3)
        super().log({**logs, **self._totals, "seconds": seconds}, start_time)

    def continue_from(self, history: Sequence[Mapping[str, float]]) -> None:
        """Take tokens and time of the run so far from its log; an empty log starts at zero."""
        if history:
            self._totals = {name: int(history[-1][name]) for name in self._totals}
        self._seconds_before = history[-1]["seconds"] if history else 0.0
        self._started = time.perf_counter()

    # ---- checkpoints ----

    def restore(self, checkpoint: Path) -> None:
        """Load weights and log of a checkpoint without training on: for a run that had reached its last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def remember(self) -> None:
        """Keep the trained weights as they are now in memory: for a run without checkpoints."""
        self._remembered = [tensor.detach().clone() for _, tensor in self._trained]

    def keep(self) -> None:
        """Put the weights that the settings want kept in the place of the last ones, and say what was kept."""
        step, section, name = self.kept_step, self.settings.section, _MEASURES[self.settings.measure]
        if step != self.state.global_step:
            if self.checkpoints is not None:
                self._put(load_file(self.checkpoints.of_step(step) / _WEIGHTS))
            else:
                with torch.no_grad():
                    for (_, tensor), before in zip(self._trained, self._remembered, strict=True):
                        tensor.copy_(before)
            note(f"{section}: kept the weights of step {step}, after which the held-out {name} was lowest")
        key = f"eval_{self.settings.measure}"
        found = {entry["step"]: entry[key] for entry in self.state.log_history if key in entry}
        if found[step] > found[0]:
            note(
                f"{section}: the held-out {name} is {found[step]:.3f} and was {found[0]:.3f} before training; "
                "lower the learning rates"
            )

    @property
    def kept_step(self) -> int:
        """The step whose weights the settings want kept."""
        if self.settings.keep == "last":
            return self.state.global_step
        return best_step(self.state.log_history, self.settings.measure)

    def whole_weights(self) -> dict[str, Tensor]:
        """Each trained weight, not split; all processes must ask for it together."""
        return {name: whole(tensor.detach()).contiguous() for name, tensor in self._trained}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trained weights."""
        with torch.no_grad():
            for name, tensor in self._trained:
                tensor.copy_(slice_like(weights[name], tensor))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.checkpoints is not None
        step = self.state.global_step
        try:
            super()._save_checkpoint(model, trial)
            self.processes.wait()  # until the others have written theirs, the state of their random numbers
            if self.processes.is_main:
                self.checkpoints.finish(step, self.kept_step)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise RadistillError(
                f"{self.checkpoints.folder}: the checkpoint of step {step} cannot be written ({reason}); "
                "make room and start again, training goes on from the checkpoint before"
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what training changes; frozen weights are those that the run started from."""
        folder = Path(output_dir or str(self.args.output_dir))
        weights = self.whole_weights()
        if self.processes.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._put(load_file(Path(resume_from_checkpoint) / _WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.processes.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        moments = whole_state(self.optimizer.state_dict())
        if self.processes.is_main:
            torch.save(moments, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.processes.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        parameters = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        moments = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(sliced_state(moments, parameters))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


class Pace(TrainerCallback):
    """Decides at each step's end what follows, and refuses a gradient that is not finite and a loss that diverges."""

    def __init__(self, trainer: DistillTrainer, interrupted: Callable[[], bool], advance: Callable[..., None]) -> None:
        """`interrupted` tells whether to stop after this step; `advance` moves the progress bar.

        `stopped` is True after a step that some process was told to stop at.
        """
        self._trainer = trainer
        self._interrupted = interrupted
        self._advance = advance
        self._saved = time.perf_counter()
        self._measured = ""
        self._pace = ""
        self._divergence = Divergence(None)
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on counting where the checkpoint stopped, whose log Trainer has restored by now, or measure the start."""
        settings = self._trainer.settings
        self._trainer.continue_from(state.log_history)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self._divergence = Divergence(settings.divergence, losses, settings.section)
        if state.global_step == 0:
            self._trainer.evaluate()
        self._saved = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse the step while the weights are still sound."""
        if not torch.isfinite(self._trainer.gradient_norm()):
            raise self._trainer.refusal("the gradient is not finite")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and save at the last step, save when it is time, stop when asked to."""
        last = state.global_step >= state.max_steps
        waited = time.perf_counter() - self._saved
        votes = self._trainer.processes.collect((self._interrupted(), waited >= self._trainer.settings.save_seconds))
        stop, due = any(stop for stop, _ in votes), votes[0][1]
        control.should_evaluate |= last
        control.should_training_stop |= stop
        self.stopped = stop
        if self._trainer.checkpoints is not None:
            control.should_save |= last or stop or due

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep weights that are better than all before; end when there have been none for too long."""
        if state.global_step == 0:
            return
        trainer = self._trainer
        over = out_of_patience(state.log_history, trainer.settings.patience, trainer.settings.measure)
        control.should_training_stop |= over
        if trainer.checkpoints is not None:
            control.should_save |= over or trainer.kept_step == state.global_step
        elif trainer.kept_step == state.global_step:
            trainer.remember()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock for the next checkpoint."""
        self._saved = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show loss, held-out KL and speed."""
        logs: Mapping[str, float] = kwargs["logs"]
        if "eval_kl" in logs:
            shown = dict.fromkeys((self._trainer.settings.measure, "kl"))
            self._measured = ", ".join(f"held-out {_MEASURES[name]} {logs[f'eval_{name}']:.3f}" for name in shown)
        if "loss" in logs:
            if wrong := self._divergence.describe(logs["loss"]):
                raise self._trainer.refusal(wrong, step=state.global_step)
            self._pace = f"loss {logs['loss']:.3f}, {logs['tokens'] / max(logs['seconds'], 1e-9):,.0f} tok/s, "
            if self._trainer.on_policy is not None:
                self._pace += f"on-policy {logs['on_policy']:.0%}, "
        self._advance(1 if "loss" in logs else 0, f"{self._pace}{self._measured}")


def batch_order(groups: int, batches_needed: int, seed: int) -> list[int]:
    """Indices of `groups` batches: every one once an epoch, shuffled anew each time, cut at `batches_needed`."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(batches_needed / groups)
    order = [index for _ in range(epochs) for index in torch.randperm(groups, generator=generator).tolist()]
    return order[:batches_needed]


def parameter_groups(
    model: nn.Module, new_parameters: Collection[str], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """AdamW's groups over the trainable parameters: new blocks first, then the rest; empty groups are left out.

    Vectors (norms, biases, decays and step sizes of an SSM) never decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (new, matrix): [] for new in (True, False) for matrix in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in new_parameters, parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.new_block_learning_rate if new else settings.other_learning_rate,
            "weight_decay": settings.weight_decay if matrix else 0.0,
        }
        for (new, matrix), parameters in groups.items()
        if parameters
    ]


def _collate_group(
    indices: Sequence[int], groups: Sequence[Sequence[Document]], pad_token_id: int
) -> dict[str, Tensor]:
    """The batch of one group of documents; labels are the response tokens, everything else is ignored."""
    (index,) = indices
    return _labelled(groups[index], pad_token_id) | {"group": torch.tensor([index])}


def _labelled(
    documents: Sequence[Document], pad_token_id: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    batch = collate(documents, pad_token_id, device)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.input_ids.masked_fill(~batch.response_mask, IGNORED_LABEL),
    }


def _arguments(
    settings: TrainingSettings,
    student: PreTrainedModel,
    folder: Path | None,
    checkpoints: Checkpoints | None,
    seed: int,
    processes: Processes,
) -> TrainingArguments:
    on_cpu = student.device.type == "cpu"
    # Trainer wants a folder that exists; without checkpoints it writes nothing there.
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder) if checkpoints else tempfile.gettempdir(),
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # one group of documents, which is a whole batch
        gradient_accumulation_steps=settings.gradient_accumulation // processes.count,
        learning_rate=settings.new_block_learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * settings.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # by the clock, in `Pace`
        report_to="none",  # a tracker's callback is added by `distill`, in the main process alone
        run_name=folder.resolve().name if folder else None,
        project="radistill",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        log_level="error",
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        seed=seed,
        data_seed=seed,
    )
    # Several GPUs in one process would be DataParallel, which splits batches.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
