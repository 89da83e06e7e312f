"""How far a student is from its teacher on text that neither was trained on."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from radistill.console import progress
from radistill.distillation.losses.top_k import TopK
from radistill.errors import RadistillError, TrainingDivergedError
from radistill.models.divergence import kl_of_logs, log_probabilities
from radistill.models.generation import evaluating
from radistill.models.logits import ResponseStates, at_output, response_states
from radistill.models.sequences import Document, batches, collate
from radistill.processes import ALONE, Processes
from radistill.speculation.acceptance import expected_acceptance

CHUNK_NUMBERS = 2**24
"""Logits of one network that exist at a time: 64 MiB for each float32 copy that the measures make of them."""


@dataclass(frozen=True)
class Distance:
    """Sums over response tokens; the properties are their means.

    Attributes:
        tokens: response tokens counted.
        kl_sum: KL(teacher || student), nats.
        agreed: tokens at which both have the same most likely next token, given the same text.
        accepted_sum: probability that the teacher accepts the student's draft of a token, both at temperature 1.
        student_nll_sum: -log p of the actual tokens under the student, nats.
    """

    tokens: int
    kl_sum: float
    agreed: int
    accepted_sum: float
    student_nll_sum: float

    @property
    def kl(self) -> float:
        """Mean KL(teacher || student), nats per response token."""
        return self.kl_sum / self.tokens

    @property
    def agreement(self) -> float:
        """Share of response tokens with the same most likely token."""
        return self.agreed / self.tokens

    @property
    def sampled_acceptance(self) -> float:
        """Expected share of tokens that the teacher accepts of a student that drafts for it, at temperature 1."""
        return min(1.0, self.accepted_sum / self.tokens)

    @property
    def student_nll(self) -> float:
        """Mean -log p of the response tokens under the student, nats; its exponential is the perplexity."""
        return self.student_nll_sum / self.tokens


def distance(
    teacher: PreTrainedModel | Callable[[Sequence[Document]], TopK],
    student_network: PreTrainedModel,
    documents: Sequence[Document],
    pad_token_id: int,
    tokens_per_batch: int = 2048,
    description: str | None = None,
    processes: Processes = ALONE,
) -> Distance:
    """Run both networks over the documents, teacher-forced, and compare their next-token distributions.

    Networks run in evaluation mode and without gradients, each on its own device. Vocabularies of different padded size
    are compared on the entries that both have.

    Args:
        teacher: the distribution p in KL(p || q): a network, or what is known of the response tokens of documents, in
            their order. Of those, KL is over the categories of `TopK`, which is at most that over the vocabulary, and
            acceptance too, which is at least that; all else is exact.
        student_network: the distribution q.
        documents: only their response tokens count.
        pad_token_id: what fills short rows.
        tokens_per_batch: padded tokens in one forward.
        description: of the progress bar; None shows none.
        processes: who share the batches among them; all must call this together, and all get the whole result.

    Raises:
        RadistillError: if there are no documents, or a measure is not a finite number (the message names documents).
    """

    def sums(group: Sequence[Document]) -> Tensor:
        batch = collate(group, pad_token_id, student_network.device)
        if isinstance(teacher, PreTrainedModel):
            known: ResponseStates | TopK = response_states(teacher, collate(group, pad_token_id, teacher.device))
        else:
            known = teacher(group).to(student_network.device)
        return at_output(student_network, batch, partial(_sums, known))

    if not documents:
        raise RadistillError("held-out measure: there are no documents to measure on")
    groups = batches(documents, tokens_per_batch)
    table = torch.zeros(len(groups), 5, dtype=torch.float64)
    networks = [network for network in (teacher, student_network) if isinstance(network, PreTrainedModel)]
    shown = progress(description, len(groups), "batches") if description else nullcontext(lambda steps: None)
    with evaluating(*networks), torch.no_grad(), shown as advance:
        for start in range(0, len(groups), processes.count):
            place = start + processes.index
            # A sharded network needs all processes in every forward: who has no batch left repeats one.
            found = sums(groups[place if place < len(groups) else start])
            if place < len(groups):
                table[place] = found
            advance(min(processes.count, len(groups) - start))
    table = processes.add(table)
    if not table.isfinite().all():
        group = groups[int(table.isfinite().all(dim=1).logical_not().nonzero()[0])]
        names = ", ".join(document.id for document in group)
        raise TrainingDivergedError(f"held-out measure: logits are not finite on the documents {names}")
    tokens, kl, agreed, accepted, nll = table.sum(dim=0).tolist()
    return Distance(int(tokens), kl, int(agreed), accepted, nll)


def _sums(of_teacher: ResponseStates | TopK, of_student: ResponseStates) -> Tensor:
    """[5], the sums of a `Distance`, in float64; the logits are made of a few tokens at a time."""
    vocabulary = min(of_teacher.vocabulary, of_student.vocabulary)
    chunk = max(1, CHUNK_NUMBERS // vocabulary)
    parts = []
    for start in range(0, len(of_student.targets), chunk):
        rows = slice(start, start + chunk)
        student = of_student.logits(rows, vocabulary).float()
        if isinstance(of_teacher, TopK):
            known = of_teacher[rows]
            best, compared = known.best, (known.categories(), known.categories_of(student))
        else:
            teacher = of_teacher.logits(rows, vocabulary).to(student.device).float()
            best, compared = teacher.argmax(dim=-1), (teacher, student)
        log_p, log_q = log_probabilities(*compared)
        figures = kl_of_logs(log_p, log_q), best == student.argmax(dim=-1), expected_acceptance(log_p, log_q)
        nll = torch.nn.functional.cross_entropy(student, of_student.targets[rows], reduction="none")
        parts.append(torch.stack([value.double().sum() for value in (*figures, nll)]))
    sums = torch.stack(parts).sum(dim=0)
    return torch.cat([sums.new_tensor([len(of_student.targets)]), sums])
