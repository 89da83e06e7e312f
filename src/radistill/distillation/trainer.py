"""transformers' Trainer, taught to distil: loss, parameter groups, held-out measures and whole checkpoints."""

import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
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
from transformers.trainer import TRAINER_STATE_NAME

from radistill.distillation.checkpoints import Checkpoints
from radistill.distillation.distill_settings import DistillSettings
from radistill.distillation.heldout import compare
from radistill.distillation.losses import chunked_sum, cross_entropy_mix
from radistill.errors import RadistillError
from radistill.files import write_json
from radistill.models.logits import ResponseStates, at_output, response_states
from radistill.models.sequences import Batch, Document, batches, collate

IGNORED_LABEL = -100
_WEIGHTS = "trainable.safetensors"


class DistillTrainer(Trainer):
    """Trains a student's trainable parameters on a teacher's logits.

    Everything that a resumed run must know beyond weights, optimiser and schedule is in Trainer's own `log_history`:
    losses, held-out measures, and with each of them the tokens and seconds spent so far.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        train: Sequence[Document],
        heldout: Sequence[Document],
        settings: DistillSettings,
        *,
        new_parameters: Collection[str],
        pad_token_id: int,
        folder: Path | None,
        checkpoints: Checkpoints | None,
        seed: int,
    ) -> None:
        """Build the trainer; nothing runs yet.

        Args:
            student: its parameters' `requires_grad` say what is trained.
            teacher: in evaluation mode; it may be on another device.
            train: documents to train on, in batches whose order the seed decides.
            heldout: documents to measure on.
            settings: see `DistillSettings`.
            new_parameters: names of the parameters that get `new_block_learning_rate`.
            pad_token_id: what fills short rows.
            folder: where a batch that gives no finite loss is written to; None writes none.
            checkpoints: None saves none.
            seed: of the order of batches.
        """
        self.student = student
        self.teacher = teacher
        self.heldout = heldout
        self.settings = settings
        self.new_parameters = frozenset(new_parameters)
        self.groups = batches(train, settings.tokens_per_batch)
        self.order = batch_order(len(self.groups), settings.steps * settings.gradient_accumulation, seed)
        self.pad_token_id = pad_token_id
        self.folder = folder
        self.checkpoints = checkpoints
        self.trained_tokens = 0
        self.trained_response_tokens = 0
        self._step_documents: list[Document] = []
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        super().__init__(
            model=student,
            args=_arguments(settings, student, checkpoints, seed),
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
        documents = self.groups[int(inputs["group"])]
        self._step_documents.extend(documents)
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != IGNORED_LABEL)
        with torch.no_grad():
            teacher = response_states(self.teacher, Batch(*(part.to(self.teacher.device) for part in batch)))
        # `model` is the student, perhaps wrapped for several processes; it is called the same way.
        total = at_output(cast(PreTrainedModel, model), batch, partial(self._total, teacher))
        loss = total / num_items_in_batch
        if not torch.isfinite(loss):
            raise self.refusal(f"the loss is {loss.item()}")
        self.trained_tokens += sum(len(document.tokens) for document in documents)
        self.trained_response_tokens += sum(len(document.tokens) - document.response_start for document in documents)
        return (loss, None) if return_outputs else loss

    def _total(self, teacher: ResponseStates, student: ResponseStates) -> Tensor:
        """Sum over the tokens of what the settings ask for."""
        loss = cross_entropy_mix(self.settings.loss, self.settings.cross_entropy)
        total = chunked_sum(loss, teacher, student)
        if self.settings.hidden is not None:
            of_teacher = teacher.hidden.to(student.hidden.device)
            total = total + self.settings.hidden.weight * self.settings.hidden(of_teacher, student.hidden).sum()
        return total

    def refusal(self, what: str) -> RadistillError:
        """The error for a step that cannot be taken; writes its documents down first."""
        step = self.state.global_step + 1
        names = ", ".join(document.id for document in self._step_documents)
        if self.folder is not None:
            path = self.folder / "failed_batch.json"
            documents = [asdict(document) for document in self._step_documents]
            write_json(path, {"step": step, "reason": what, "documents": documents})
            names += f" (written to {path})"
        return RadistillError(
            f"distill: {what} at step {step}, on the documents {names}; "
            "lower the learning rates or take these documents out"
        )

    def forget_step(self) -> None:
        """Start a new optimiser step: the documents of the last one are done."""
        self._step_documents = []

    # ---- optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters: new blocks at their own rate; only matrices decay."""
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.student)
            trained = self.student if model is None else model
            self.optimizer = kind(parameter_groups(trained, self.new_parameters, self.settings), **arguments)
        return self.optimizer

    # ---- measures and log ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the student on the held-out documents."""
        measured = compare(self.teacher, self.student, self.heldout, self.pad_token_id, self.settings.tokens_per_batch)
        metrics = {"eval_kl": measured.kl, "eval_agreement": measured.agreement}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the totals that a resumed run continues from."""
        totals = {
            "tokens": self.trained_tokens,
            "response_tokens": self.trained_response_tokens,
            "seconds": round(self._seconds_before + time.perf_counter() - self._started, 3),
        }
        super().log({**logs, **totals}, start_time)

    def continue_from(self, history: Sequence[Mapping[str, float]]) -> None:
        """Take the totals of the run so far from its log; an empty log starts at zero."""
        last = history[-1] if history else {"tokens": 0, "response_tokens": 0, "seconds": 0.0}
        self.trained_tokens = int(last["tokens"])
        self.trained_response_tokens = int(last["response_tokens"])
        self._seconds_before = last["seconds"]
        self._started = time.perf_counter()

    # ---- checkpoints ----

    def restore(self, checkpoint: Path) -> None:
        """Load weights and log of a checkpoint without training on: for a run that had reached its last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.checkpoints is not None
        step = self.state.global_step
        try:
            super()._save_checkpoint(model, trial)
            self.checkpoints.finish(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise RadistillError(
                f"{self.checkpoints.folder}: the checkpoint of step {step} cannot be written ({reason}); "
                "make room and start again, training goes on from the checkpoint before"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what training changes; frozen weights are those that the run started from."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in self._trainable()}, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, tensor in self._trainable():
                tensor.copy_(weights[name])

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad]


class Pace(TrainerCallback):
    """Decides at each step's end what follows, and refuses gradients that are not finite."""

    def __init__(self, trainer: DistillTrainer, interrupted: Callable[[], bool], advance: Callable[..., None]) -> None:
        """`interrupted` tells whether to stop after this step; `advance` moves the progress bar."""
        self._trainer = trainer
        self._interrupted = interrupted
        self._advance = advance
        self._saved = time.perf_counter()
        self._kl = math.nan
        self._pace = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on counting where the checkpoint stopped, whose log Trainer has restored by now, or measure the start."""
        self._trainer.continue_from(state.log_history)
        if state.global_step == 0:
            self._trainer.evaluate()
        self._saved = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the last step's documents."""
        self._trainer.forget_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse the step while the weights are still sound."""
        gradients = [p.grad for p in self._trainer.student.parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise self._trainer.refusal("the gradient is not finite")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and save at the last step, save when it is time, stop when asked to."""
        last = state.global_step >= state.max_steps
        stop = self._interrupted()
        control.should_evaluate |= last
        control.should_training_stop |= stop
        if self._trainer.checkpoints is not None:
            due = time.perf_counter() - self._saved >= self._trainer.settings.save_seconds
            control.should_save |= last or stop or due

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock for the next checkpoint."""
        self._saved = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show loss, held-out KL and speed."""
        logs: Mapping[str, float] = kwargs["logs"]
        self._kl = logs.get("eval_kl", self._kl)
        if "loss" in logs:
            self._pace = f"loss {logs['loss']:.3f}, {logs['tokens'] / max(logs['seconds'], 1e-9):,.0f} tok/s, "
        self._advance(1 if "loss" in logs else 0, f"{self._pace}held-out KL {self._kl:.3f}")


def batch_order(groups: int, batches_needed: int, seed: int) -> list[int]:
    """Indices of `groups` batches: every one once an epoch, shuffled anew each time, cut at `batches_needed`."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(batches_needed / groups)
    order = [index for _ in range(epochs) for index in torch.randperm(groups, generator=generator).tolist()]
    return order[:batches_needed]


def parameter_groups(
    model: nn.Module, new_parameters: Collection[str], settings: DistillSettings
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
    batch = collate(groups[index], pad_token_id)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.input_ids.masked_fill(~batch.response_mask, IGNORED_LABEL),
        "group": torch.tensor([index]),
    }


def _arguments(
    settings: DistillSettings, student: PreTrainedModel, checkpoints: Checkpoints | None, seed: int
) -> TrainingArguments:
    on_cpu = student.device.type == "cpu"
    # Trainer wants a folder that exists; without checkpoints it writes nothing there.
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder) if checkpoints else tempfile.gettempdir(),
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # one group of documents, which is a whole batch
        gradient_accumulation_steps=settings.gradient_accumulation,
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
        report_to="none",  # TensorBoard's callback is added by `distill`, which knows the folder
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        log_level="error",
        use_cpu=on_cpu,
        seed=seed,
        data_seed=seed,
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # several GPUs in one process would be DataParallel, which splits batches
    return arguments
