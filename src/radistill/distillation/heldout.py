"""How far a student is from its teacher on text that neither was trained on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from radistill.console import progress
from radistill.distillation.losses import forward_kl
from radistill.errors import RadistillError
from radistill.models.logits import ResponseStates, at_output, response_states
from radistill.models.sequences import Document, batches, collate
from radistill.processes import ALONE, Processes

CHUNK_NUMBERS = 2**24
"""Logits of one network that exist at a time: 64 MiB for each float32 copy that the measures make of them."""


@dataclass(frozen=True)
class Comparison:
    """Sums over response tokens; the properties are their means.

    Attributes:
        tokens: response tokens counted.
        kl_sum: KL(teacher || student), nats.
        agreed: tokens at which both have the same most likely next token, given the same text.
        student_nll_sum: -log p of the actual tokens under the student, nats.
        teacher_nll_sum: the same under the teacher.
    """

    tokens: int
    kl_sum: float
    agreed: int
    student_nll_sum: float
    teacher_nll_sum: float

    @property
    def kl(self) -> float:
        """Mean KL(teacher || student), nats per response token."""
        return self.kl_sum / self.tokens

    @property
    def agreement(self) -> float:
        """Share of response tokens with the same most likely token."""
        return self.agreed / self.tokens

    @property
    def student_nll(self) -> float:
        """Mean -log p of the response tokens under the student, nats; its exponential is the perplexity."""
        return self.student_nll_sum / self.tokens

    @property
    def teacher_nll(self) -> float:
        """Mean -log p of the response tokens under the teacher, nats."""
        return self.teacher_nll_sum / self.tokens


def compare(
    teacher_network: PreTrainedModel,
    student_network: PreTrainedModel,
    documents: Sequence[Document],
    pad_token_id: int,
    tokens_per_batch: int = 2048,
    description: str | None = None,
    processes: Processes = ALONE,
) -> Comparison:
    """Run both networks over the documents, teacher-forced, and compare their next-token distributions.

    Both run in evaluation mode and without gradients, each on its own device. Vocabularies of different padded size
    are compared on the entries that both have.

    Args:
        teacher_network: the distribution p in KL(p || q).
        student_network: the distribution q.
        documents: only their response tokens count.
        pad_token_id: what fills short rows.
        tokens_per_batch: padded tokens in one forward.
        description: of the progress bar; None shows none.
        processes: who share the batches among them; all must call this together, and all get the whole result.

    Raises:
        RadistillError: if there are no documents, or a measure is not a finite number (the message names documents).
    """
    if not documents:
        raise RadistillError("held-out measure: there are no documents to measure on")
    groups = batches(documents, tokens_per_batch)
    table = torch.zeros(len(groups), 5, dtype=torch.float64)
    shown = progress(description, len(groups), "batches") if description else nullcontext(lambda steps: None)
    with _evaluating(teacher_network, student_network), torch.no_grad(), shown as advance:
        for start in range(0, len(groups), processes.count):
            place = start + processes.index
            # A sharded network needs all processes in every forward: who has no batch left repeats one.
            group = groups[place if place < len(groups) else start]
            batch = collate(group, pad_token_id, student_network.device)
            teacher = response_states(teacher_network, collate(group, pad_token_id, teacher_network.device))
            sums = at_output(student_network, batch, partial(_sums, teacher))
            if place < len(groups):
                table[place] = sums
            advance(min(processes.count, len(groups) - start))
    table = processes.add(table)
    if not table.isfinite().all():
        group = groups[int(table.isfinite().all(dim=1).logical_not().nonzero()[0])]
        names = ", ".join(document.id for document in group)
        raise RadistillError(f"held-out measure: logits are not finite on the documents {names}")
    tokens, kl, agreed, student_nll, teacher_nll = table.sum(dim=0).tolist()
    return Comparison(int(tokens), kl, int(agreed), student_nll, teacher_nll)


def _sums(of_teacher: ResponseStates, of_student: ResponseStates) -> Tensor:
    """[5], the sums of a `Comparison`, in float64; the logits are made of a few tokens at a time."""
    vocabulary = min(len(states.output.weight) for states in (of_teacher, of_student))
    chunk = max(1, CHUNK_NUMBERS // vocabulary)
    parts = []
    for start in range(0, len(of_student.targets), chunk):
        rows = slice(start, start + chunk)
        student = of_student.logits(rows, vocabulary).float()
        teacher = of_teacher.logits(rows, vocabulary).to(student.device).float()
        target = of_student.targets[rows]
        values = (
            forward_kl(teacher, student),
            teacher.argmax(dim=-1) == student.argmax(dim=-1),
            torch.nn.functional.cross_entropy(student, target, reduction="none"),
            torch.nn.functional.cross_entropy(teacher, target, reduction="none"),
        )
        parts.append(torch.stack([value.double().sum() for value in values]))
    sums = torch.stack(parts).sum(dim=0)
    return torch.cat([sums.new_tensor([len(of_student.targets)]), sums])


@contextmanager
def _evaluating(*networks: PreTrainedModel) -> Iterator[None]:
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)
