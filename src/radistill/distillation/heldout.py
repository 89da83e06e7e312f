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
from radistill.models.logits import ResponseStates, at_output, chunks, response_states
from radistill.models.sequences import Document, batches, collate
from radistill.processes import ALONE, Processes
from radistill.speculation.acceptance import expected_acceptance


@dataclass(frozen=True)
class Distance:
    """Means over response tokens.

    Attributes:
        tokens: response tokens counted.
        kl: KL(teacher || student), nats.
        agreement: share of tokens at which both have the same most likely next token, given the same text.
        sampled_acceptance: expected share of tokens that the teacher accepts of a student that drafts for it, both at
            temperature 1.
        student_nll: -log p of the actual tokens under the student, nats; its exponential is the perplexity.
    """

    tokens: int
    kl: float
    agreement: float
    sampled_acceptance: float
    student_nll: float


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
        return at_output(student_network, batch, partial(_sums, known)).cpu()

    if not documents:
        raise RadistillError("held-out measure: there are no documents to measure on")
    groups = batches(documents, tokens_per_batch)
    # A sharded network needs all processes in every forward: who has no batch left repeats one.
    units = [*groups, *(groups[-1:] * (-len(groups) % processes.count))]
    networks = [network for network in (teacher, student_network) if isinstance(network, PreTrainedModel)]
    shown = progress(description, len(units), "batches") if description else nullcontext(lambda steps: None)
    with evaluating(*networks), torch.no_grad(), shown as advance:
        table = torch.stack(processes.share(units, sums, lambda done: advance(len(done))))[: len(groups)]
    if not table.isfinite().all():
        group = groups[int(table.isfinite().all(dim=1).logical_not().nonzero()[0])]
        names = ", ".join(document.id for document in group)
        raise TrainingDivergedError(f"held-out measure: logits are not finite on the documents {names}")
    tokens, *found = table.sum(dim=0).tolist()
    kl, agreement, accepted, nll = (figure / tokens for figure in found)
    return Distance(int(tokens), kl, agreement, min(1.0, accepted), nll)


def _sums(of_teacher: ResponseStates | TopK, of_student: ResponseStates) -> Tensor:
    """[5], in float64: the number of tokens, and the sums of which a `Distance` has the means."""
    vocabulary = min(of_teacher.vocabulary, of_student.vocabulary)
    parts = []
    for rows in chunks(len(of_student.targets), vocabulary):
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
