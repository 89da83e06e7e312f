"""The training loop: batch after batch, optimiser step after step, with held-out measures and checkpoints between."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, get_scheduler

from radistill.console import note
from radistill.distillation.checkpoints import Checkpoints
from radistill.distillation.checks import Job
from radistill.distillation.heldout import distance
from radistill.distillation.losses.chunked import chunked_sum
from radistill.distillation.losses.top_k import TopK
from radistill.distillation.modes import computing, uncompiled
from radistill.distillation.on_policy import OnPolicy
from radistill.distillation.selection import gaining
from radistill.distillation.settings import TrainingSettings
from radistill.distillation.sharding import release, slice_like, sliced_state, whole, whole_state
from radistill.distillation.stopping import Divergence, Measure, best_step, out_of_patience
from radistill.distillation.teacher_store import StoredTeacher
from radistill.distillation.tracking import Report
from radistill.errors import RadistillError, TrainingDivergedError
from radistill.files import write_json
from radistill.models.logits import ResponseStates, at_output, response_states
from radistill.models.sequences import Batch, Document, batch_order, batches, collate
from radistill.processes import ALONE, Processes

_MEASURES: dict[Measure, str] = {"kl": "KL", "cross_entropy": "cross-entropy"}


@dataclass
class Log:
    """All that a resumed run must know beyond weights, optimiser and schedule; the fields are `DistillResult`'s."""

    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    response_tokens: int = 0
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        return len(self.curve)


class Training:
    """Trains a student's trainable parameters, on a teacher's logits or on response tokens.

    With `on_policy`, the student writes its batches when the step that they belong to begins.

    Several processes share the batches of each optimiser step: of a step with the batches a, b, c and d, the first of
    two processes has a and c. So a step, its loss and its gradient are what they are in one process, up to the order
    in which floats are added. A checkpoint holds whole weights and moments, however they were split.
    """

    def __init__(
        self,
        job: Job,
        student: PreTrainedModel,
        teacher: PreTrainedModel | StoredTeacher,
        *,
        compute: torch.dtype | None,
        checkpoints: Checkpoints | None,
        processes: Processes = ALONE,
    ) -> None:
        """Nothing runs yet.

        Args:
            job: what is asked; a batch that gives no finite loss is written to its folder.
            student: in training mode; its parameters' `requires_grad` say what is trained; with several processes
                perhaps sharded.
            teacher: in evaluation mode; it may be on another device. Or what it has left on disk.
            compute: format of matrix products, of the teacher's too; None is that of the weights.
            checkpoints: None saves none.
            processes: who train together; their number divides `gradient_accumulation`.
        """
        self.settings = settings = job.settings
        self.log = Log()
        self._job = job
        self._student = student
        self._teacher = teacher
        self._compute = compute
        self._checkpoints = checkpoints
        self._on_policy = None if settings.on_policy is None else OnPolicy(job, settings.on_policy)
        self._processes = processes
        room = 0 if settings.on_policy is None else settings.on_policy.max_new_tokens
        self._groups = batches(job.train, settings.tokens_per_batch, max_new_tokens=room)
        self._order = batch_order(len(self._groups), settings.steps * settings.gradient_accumulation, job.seed)
        # While a sharded weight is whole, another parameter stands in its place in the network.
        self._trained = {name: tensor for name, tensor in student.named_parameters() if tensor.requires_grad}
        groups = parameter_groups(student, job.new_parameters, settings)
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        self._scheduler = get_scheduler(
            settings.scheduler, self._optimizer, math.ceil(settings.warmup_ratio * settings.steps), settings.steps
        )
        self._network: nn.Module = student
        if processes.count > 1 and not processes.sharded:
            on_gpu = student.device.type == "cuda"
            self._network = DistributedDataParallel(student, device_ids=[student.device] if on_gpu else None)
        self._running: dict[int, Sequence[Document]] = {}
        self._remembered: dict[str, Tensor] = {}
        self._started = time.perf_counter()

    # ---- the run ----

    @property
    def finished(self) -> bool:
        """Whether no step is left: all are done, or patience has run out."""
        settings, log = self.settings, self.log
        return log.step >= settings.steps or out_of_patience(log.evaluations, settings.patience, settings.measure)

    @property
    def kept_step(self) -> int:
        """The step whose weights the settings want kept."""
        if self.settings.keep == "last":
            return self.log.step
        return best_step(self.log.evaluations, self.settings.measure)

    def run(self, interrupted: Callable[[], bool], advance: Callable[..., None], report: Report) -> bool:
        """Take the steps that are left, the first measure before them; whether some process was told to stop.

        Args:
            interrupted: whether to stop after this step.
            advance: moves the progress bar.
            report: gets the figures of each step and measure.

        Raises:
            RadistillError: if a loss or gradient is not finite, the loss diverges, or a checkpoint cannot be written.
        """
        settings, log = self.settings, self.log
        divergence = Divergence(settings.divergence, [row["loss"] for row in log.curve], settings.section)
        self._started = time.perf_counter() - log.seconds
        if not log.evaluations:
            self._measure(report)
        saved, stop = time.perf_counter(), False
        while not (stop or self.finished):
            row = self._step(report)
            if wrong := divergence.describe(row["loss"]):
                raise self._refusal(wrong, step=log.step)
            votes = self._processes.collect((interrupted(), time.perf_counter() - saved >= settings.save_seconds))
            stop, due = any(stop for stop, _ in votes), votes[0][1]
            measured = log.step % settings.eval_steps == 0 or log.step == settings.steps
            if measured:
                self._measure(report)
            best = measured and self.kept_step == log.step
            if self._checkpoints is None and best:
                self._remembered = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
            if self._checkpoints is not None and (best or due or stop or self.finished):
                self._save(self._checkpoints)
                saved = time.perf_counter()
            advance(1, self._status())
        return any(self._processes.collect(interrupted()))  # also while the last step was measured and saved

    def _step(self, report: Report) -> dict[str, float]:
        """One optimiser step on this process's batches of it; what is logged of it."""
        settings, log, processes = self.settings, self.log, self._processes
        first = log.step * settings.gradient_accumulation
        positions = range(first, first + settings.gradient_accumulation)[processes.index :: processes.count]
        self._running = {position: self._documents(position) for position in positions}
        tokens, responses, own = self._count()
        loss = 0.0
        for position in positions:
            together = position == positions[-1] or self._network is self._student
            with nullcontext() if together else cast(DistributedDataParallel, self._network).no_sync():
                # Gradients are averaged over processes, but each has only its own terms of the sum.
                term = self._loss(position) * processes.count / responses
                terms = processes.collect((position, term.item()))
                if refused := [(place, value) for place, value in terms if not math.isfinite(value)]:
                    raise self._refusal(f"the loss is {refused[0][1]}", [place for place, _ in refused])
                term.backward()
            loss += sum(value for _, value in terms) / processes.count
        norm = whole(nn.utils.clip_grad_norm_(self._trained.values(), settings.max_grad_norm)).item()
        if not math.isfinite(norm):  # while the weights are still sound
            raise self._refusal("the gradient is not finite")
        self._optimizer.step()
        rate = self._scheduler.get_last_lr()[0]
        self._scheduler.step()
        self._optimizer.zero_grad()
        log.tokens += tokens
        log.response_tokens += responses
        row = {
            "step": log.step + 1,
            "tokens": log.tokens,
            "loss": loss,
            "on_policy": own / responses,
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        self._write(log.curve, row, report, "train")
        return row

    def _measure(self, report: Report) -> None:
        """Log how far the student is from its teacher on the held-out documents."""
        student, teacher = self._student, self._teacher
        device = student.device if isinstance(teacher, StoredTeacher) else teacher.device
        with computing(self._compute, student.device), computing(self._compute, device):
            found = distance(
                teacher.of if isinstance(teacher, StoredTeacher) else teacher,
                student,
                self._job.heldout,
                self._job.student.pad_token_id,
                self.settings.tokens_per_batch,
                processes=self._processes,
            )
        release(student)
        row = {
            "step": self.log.step,
            "tokens": self.log.tokens,
            "kl": found.kl,
            "agreement": found.agreement,
            "sampled_acceptance": found.sampled_acceptance,
            "cross_entropy": found.student_nll,
        }
        self._write(self.log.evaluations, row, report, "eval")

    def _write(self, rows: list[dict[str, float]], row: dict[str, float], report: Report, kind: str) -> None:
        log = self.log
        log.seconds = round(time.perf_counter() - self._started, 3)
        rows.append(row)
        figures = {**row, "response_tokens": log.response_tokens, "seconds": log.seconds}
        report({f"{kind}/{name}": value for name, value in figures.items() if name != "step"}, log.step)

    def _status(self) -> str:
        """Loss, speed and held-out measures, for the progress bar."""
        log, last, measured = self.log, self.log.curve[-1], self.log.evaluations[-1]
        parts = [f"loss {last['loss']:.3f}", f"{log.tokens / max(log.seconds, 1e-9):,.0f} tok/s"]
        if self._on_policy is not None:
            parts.append(f"on-policy {last['on_policy']:.0%}")
        shown: list[Measure] = list(dict.fromkeys((self.settings.measure, "kl")))
        return ", ".join([*parts, *(f"held-out {_MEASURES[name]} {measured[name]:.3f}" for name in shown)])

    # ---- batches ----

    def _documents(self, position: int) -> Sequence[Document]:
        """The batch at a position in the order of training."""
        documents = self._groups[self._order[position]]
        if not self._is_own(position):
            return documents
        assert self._on_policy is not None
        with computing(self._compute, self._student.device), uncompiled(self.settings.compile):
            return self._on_policy.write(self._student, documents, position)

    def _is_own(self, position: int) -> bool:
        """Whether the student writes the batch at a position in the order of training."""
        return self._on_policy is not None and self._on_policy.replaces(position)

    def _count(self) -> tuple[int, int, int]:
        """Tokens of the step in all processes, those of them in responses, and of these those the student wrote."""
        sums = torch.zeros(3, dtype=torch.long)
        for position, documents in self._running.items():
            tokens = sum(len(document.tokens) for document in documents)
            responses = sum(document.response_tokens for document in documents)
            sums += torch.tensor([tokens, responses, responses * self._is_own(position)])
        tokens, responses, own = self._processes.add(sums).tolist()
        return tokens, responses, own

    # ---- loss ----

    def _loss(self, position: int) -> Tensor:
        """The settings' loss, summed over the response tokens of the batch at a position."""
        documents, device = self._running[position], self._student.device
        batch = collate(documents, self._job.student.pad_token_id, device)
        teacher, reference = self._of_teacher(documents, batch), None
        if self._job.reference is not None:
            with torch.no_grad(), computing(self._compute, device):
                reference = response_states(self._job.reference.network, batch)
        total = partial(self._total, self._is_own(position), teacher, reference)
        # The network is the student, perhaps wrapped for several processes; it is called the same way.
        with computing(self._compute, device):
            return at_output(cast(PreTrainedModel, self._network), batch, total)

    def _of_teacher(self, documents: Sequence[Document], batch: Batch) -> ResponseStates | TopK | None:
        """What the teacher says to a batch of these documents; None where the loss does not ask."""
        if not self.settings.taught:
            return None
        if isinstance(self._teacher, StoredTeacher):
            return self._teacher.of(documents).to(self._student.device)
        with torch.no_grad(), computing(self._compute, self._teacher.device):
            return response_states(self._teacher, batch.to(self._teacher.device))

    def _total(
        self,
        own: bool,
        teacher: ResponseStates | TopK | None,
        reference: ResponseStates | None,
        student: ResponseStates,
    ) -> Tensor:
        """Sum over the tokens of what the settings ask for; `own` if the student wrote them.

        Where a reference tells which of them count, these stand for all: the mean is theirs.
        """
        if reference is not None:
            assert teacher is not None
            assert self.settings.select is not None
            kept = gaining(teacher, student, reference, self.settings.select.share)
            scale = len(student.targets) / max(1, len(kept))
            return scale * self._total(own, teacher.at(kept), None, student.at(kept))
        total = chunked_sum(self.settings.token_loss(own), teacher, student)
        if self.settings.hidden is not None:
            assert isinstance(teacher, ResponseStates)  # the settings are checked for it
            of_teacher = teacher.hidden.to(student.hidden.device)
            total = total + self.settings.hidden.weight * self.settings.hidden(of_teacher, student.hidden).sum()
        return total

    def _refusal(self, what: str, positions: Sequence[int] | None = None, step: int | None = None) -> RadistillError:
        """The error for a step that went wrong; writes its documents down first. All processes must ask for it.

        Args:
            what: what is wrong.
            positions: of the batches to blame, in the order of training; None is all of the step.
            step: from 1; None is the one that runs.
        """
        step = step or self.log.step + 1
        running = {place: group for part in self._processes.collect(self._running) for place, group in part.items()}
        documents = [document for place in positions or sorted(running) for document in running[place]]
        names = ", ".join(document.id for document in documents)
        if self._job.folder is not None:
            path = self._job.folder / "failed_batch.json"
            if self._processes.is_main:
                write_json(path, {"step": step, "reason": what, "documents": [d.to_json() for d in documents]})
            names += f" (written to {path})"
        return TrainingDivergedError(
            f"{self.settings.section}: {what} at step {step}, on the documents {names}; "
            "lower the learning rates or take these documents out"
        )

    # ---- weights ----

    def restore(self, checkpoint: Path) -> None:
        """Go on where a complete checkpoint of this training stopped."""
        assert self._checkpoints is not None
        weights, states, log = self._checkpoints.load(checkpoint, self._student.device)
        self._put(weights)
        parameters = [tensor for group in self._optimizer.param_groups for tensor in group["params"]]
        self._optimizer.load_state_dict(sliced_state(states["optimizer"], parameters))
        self._scheduler.load_state_dict(states["scheduler"])
        self.log = Log(**log)

    def keep(self) -> None:
        """Put the weights that the settings want kept in the place of the last ones, and say what was kept."""
        step, section, name = self.kept_step, self.settings.section, _MEASURES[self.settings.measure]
        if step != self.log.step:
            self._put(self._remembered if self._checkpoints is None else self._checkpoints.weights(step))
            note(f"{section}: kept the weights of step {step}, after which the held-out {name} was lowest")
        found = {row["step"]: row[self.settings.measure] for row in self.log.evaluations}
        if found[step] > found[0]:
            note(
                f"{section}: the held-out {name} is {found[step]:.3f} and was {found[0]:.3f} before training; "
                "lower the learning rates"
            )

    def whole_weights(self) -> dict[str, Tensor]:
        """Each trained weight, not split; all processes must ask for it together."""
        return {name: whole(tensor.detach()).contiguous() for name, tensor in self._trained.items()}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trained weights."""
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(slice_like(weights[name], tensor))

    def _save(self, checkpoints: Checkpoints) -> None:
        states = {"optimizer": whole_state(self._optimizer.state_dict()), "scheduler": self._scheduler.state_dict()}
        checkpoints.save(
            self.log.step, self.kept_step, self.whole_weights(), states, asdict(self.log), self._student.device
        )

    # ---- words ----

    def outline(self) -> str:
        """What the settings amount to, before the first step."""
        settings, own_settings = self.settings, self.settings.on_policy
        lengths = [sum(len(document.tokens) for document in group) for group in self._groups]
        given = [index for place, index in enumerate(self._order) if not self._is_own(place)]
        tokens, batches_of_all = sum(lengths[index] for index in given), len(self._order)
        sizes = {name: parameter.numel() for name, parameter in self._student.named_parameters()}
        new = sum(sizes[name] for name in self._job.new_parameters)
        rest = sum(sizes.values()) - new
        rates = (settings.rate(new=True), settings.rate(new=False))
        at_rates = [f"at rate {rate:g}" if rate > 0 else "frozen" for rate in rates]
        of, written = "", ""
        if own_settings is not None:
            of, written = (
                " of documents",
                f" and {batches_of_all - len(given)} of {batches_of_all} batches that the student writes itself, up to "
                f"{own_settings.max_new_tokens} tokens a response at temperature {own_settings.temperature:g}",
            )
        return (
            f"{settings.section}: {settings.steps} steps, {tokens:,} tokens{of} ({tokens / sum(lengths):.1f} epochs of "
            f"{len(lengths)} batches){written}; {new:,} new parameters {at_rates[0]}, {rest:,} others {at_rates[1]}"
            + (f"; the {settings.select.share:.0%} of tokens with most to gain count" if settings.select else "")
            + ("; held-out KL is over the stored tokens and the rest as one" if settings.teacher_store else "")
        )


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
            "lr": settings.rate(new),
            "weight_decay": settings.weight_decay if matrix else 0.0,
        }
        for (new, matrix), parameters in groups.items()
        if parameters
    ]
