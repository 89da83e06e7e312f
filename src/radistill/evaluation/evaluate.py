"""How close a model is to its base, on held-out responses and by generating answers of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from radistill.distillation.heldout import distance
from radistill.errors import RadistillError
from radistill.evaluation.exact_match import check_verifier, is_correct
from radistill.evaluation.results import Figures
from radistill.models.endings import end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.sequences import Document
from radistill.processes import ALONE, Processes
from radistill.runs.sections import EvaluateSettings
from radistill.statistics import wilson


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model.

    Attributes:
        kl: KL(base || model), mean over held-out response tokens, in nats.
        agreement: share of those tokens at which both models' likeliest token is the same.
        sampled_acceptance: how many of the model's tokens the base would accept if it drafted for it, both at
            temperature 1: mean of sum_v min(p_v, q_v) over those tokens (arXiv 2211.17192).
        perplexity: of the model on the held-out responses, exp of the mean negative log-likelihood a token.
        exact_match: share of generated answers that the verifier takes as right; None if nothing can be verified.
        exact_match_n: answers that were verified.
        exact_match_interval: 95 % Wilson interval of `exact_match`.
        unfinished: answers among them that were cut at the length limit.
        kv_bytes_per_token: KV cache of all attention layers, in bfloat16.
        ssm_state_bytes: recurrent state of a sequence, whatever its length, in float32.
        n_documents: held-out documents.
        n_tokens: their response tokens.
        answers: the generated answers, in the order of the documents.
        tasks: figures of each task that the model was asked, by its name (`evaluation.results`).
    """

    kl: float
    agreement: float
    sampled_acceptance: float
    perplexity: float
    exact_match: float | None
    exact_match_n: int
    exact_match_interval: tuple[float, float] | None
    unfinished: int
    kv_bytes_per_token: int
    ssm_state_bytes: int
    n_documents: int
    n_tokens: int
    answers: list[str] = field(default_factory=list)
    tasks: dict[str, Figures] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `evaluation.json`, without the answers."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}


def evaluate(
    model: Model,
    base: Model,
    documents: Sequence[Document],
    settings: EvaluateSettings | None = None,
    *,
    verifiers: Sequence[Mapping[str, Any] | None] | None = None,
    written: Sequence[Sequence[int]] | None = None,
    cache: Path | None = None,
    name: str = "model",
    processes: Processes = ALONE,
) -> Evaluation:
    """Compare `model` with the `base` that it came from.

    Args:
        model: the model to judge, with the base's tokenizer.
        base: the model that its figures are relative to; may be `model` itself.
        documents: held-out prompts with responses, best written by the base.
        settings: what is measured.
        verifiers: one a document, as the data stage writes them; None where an answer cannot be checked.
        written: answers that are known already, as token ids; they are not generated again.
        cache: a file that keeps generated answers, so that a killed evaluation goes on.
        name: shown on progress bars.
        processes: who share the batches; all must call this together, and all get the figures.

    Raises:
        RadistillError: without documents, or with verifiers that do not match them or cannot judge.
    """
    settings = settings or EvaluateSettings()
    if not documents:
        raise RadistillError("data.heldout: no documents to evaluate on; ask for at least one")
    if verifiers is not None and len(verifiers) != len(documents):
        raise RadistillError(f"evaluate: {len(verifiers)} verifiers for {len(documents)} documents")
    for verifier in verifiers or []:
        if verifier is not None:
            check_verifier(verifier)
    found = distance(
        base.network,
        model.network,
        documents,
        base.pad_token_id,
        tokens_per_batch=settings.tokens_per_batch,
        description=f"{name}: held-out",
        processes=processes,
    )
    if not settings.exact_match or not any(verifiers or []):
        written = []
    elif written is None:
        written = generate(
            model,
            [document.tokens[: document.response_start] for document in documents],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            cache=cache,
            description=f"{name}: answers",
            processes=processes,
            images=[document.images for document in documents],
        )
    answers = [str(model.tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in written]
    ends = end_tokens(model)
    correct = [
        is_correct(answer, verifier)
        for answer, verifier in zip(answers, verifiers or [], strict=bool(answers))
        if verifier is not None
    ]
    return Evaluation(
        kl=found.kl,
        agreement=found.agreement,
        sampled_acceptance=found.sampled_acceptance,
        perplexity=math.exp(found.student_nll),
        exact_match=sum(correct) / len(correct) if correct else None,
        exact_match_n=len(correct),
        exact_match_interval=wilson(sum(correct), len(correct)) if correct else None,
        unfinished=sum(tokens[-1] not in ends for tokens in written),
        kv_bytes_per_token=model.anatomy.kv_bytes_per_token(),
        ssm_state_bytes=model.anatomy.ssm_state_bytes(),
        n_documents=len(documents),
        n_tokens=found.tokens,
        answers=answers,
    )
