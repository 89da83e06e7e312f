"""`perplexity`: how well a model predicts texts, in nats a byte, so that models with other tokens can be compared."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from radistill.batch_log import append_batch, read_batches
from radistill.console import progress
from radistill.data.documents import prompt_tokens, response_tokens
from radistill.data.examples import Example, example_from_row
from radistill.errors import RadistillError
from radistill.evaluation.results import Row
from radistill.evaluation.tasks.interface import Measured, TaskSettings
from radistill.evaluation.tasks.rows import read_rows
from radistill.files import hash_json
from radistill.models.loading import Model
from radistill.models.logits import chunks, response_states
from radistill.models.sequences import Document, batches, collate, hash_documents
from radistill.processes import Processes

_TOKENS_PER_BATCH = 2048


def _measure(
    model: Model, settings: TaskSettings, keep: Callable[[Row], None], cache: Path, processes: Processes
) -> None:
    """Texts count from their second token, conversations only in their response; long ones are read in windows."""
    examples = _examples(settings)
    windows: dict[str, list[Document]] = {example.id: _windows(model, example) for example in examples}
    groups = batches([document for parts in windows.values() for document in parts], _TOKENS_PER_BATCH)
    keys = [hash_json([model.fingerprint, hash_documents(group)]) for group in groups]
    finished = processes.decide(lambda: read_batches(cache))
    left = [number for number, key in enumerate(keys) if key not in finished]

    def measure(number: int) -> list[float]:
        found = _nats(model, groups[number])
        append_batch(cache, keys[number], found)
        return found

    with progress("perplexity", len(groups), "batches", done=len(groups) - len(left)) as advance:
        found = processes.share(left, measure, lambda done: advance(len(done)))
    finished |= zip((keys[number] for number in left), found, strict=True)
    nats = {
        part.id: value
        for group, key in zip(groups, keys, strict=True)
        for part, value in zip(group, finished[key], strict=True)
    }
    for number, example in enumerate(examples) if processes.is_main else ():
        keep(_row(number, example, windows[example.id], nats))


def _row(number: int, example: Example, parts: list[Document], nats: dict[str, float]) -> Row:
    text = example.response if example.text is None else example.text
    return {
        "number": number,
        "id": example.id,
        "key": hash_json([example.prompt, example.response])[:16],
        "nats": sum(nats[part.id] for part in parts),
        "bytes": len((text or "").encode()),
        "tokens": sum(part.response_tokens for part in parts),
    }


def _examples(settings: TaskSettings) -> list[Example]:
    hub = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    rows = read_rows(("perplexity",), replace(settings, limit=None), hub, ())
    examples = [
        example_from_row(row, f"text-{number}", f"perplexity, row {number}")
        for number, row in enumerate(rows, start=1)
        # A text of a word or a heading has next to nothing to predict.
        if not (isinstance(row, dict) and isinstance(row.get("text"), str) and len(row["text"].split()) < 2)
    ][: settings.limit]
    for example in examples:
        if example.text is None and not example.response:
            raise RadistillError(f"perplexity: {example.id} has no response; give rows with text, or with a response")
        if example.response_fields:
            raise RadistillError(
                f"perplexity: {example.id} has {next(iter(example.response_fields))} in its response, whose bytes are "
                "not counted; give rows with text"
            )
    if not examples:
        raise RadistillError("perplexity: no row has a text of at least two words")
    return examples


def _windows(model: Model, example: Example) -> list[Document]:
    """The example's tokens in stretches that the model and a batch can hold; each is read without the ones before."""
    context = model.context_length
    most = min(context or _TOKENS_PER_BATCH, _TOKENS_PER_BATCH)
    tokens, start = prompt_tokens(example, model.tokenizer), 1
    if example.text is None:
        start = len(tokens)
        tokens += response_tokens(example, model.tokenizer).tokens
    found = []
    for first in range(0, len(tokens), most):
        part = tuple(tokens[first : first + most])
        counted = max(start - first, 1)
        if counted < len(part):
            found.append(Document(f"{example.id}-{first}", part, counted))
    return found


@torch.no_grad()
def _nats(model: Model, group: list[Document]) -> list[float]:
    """Negative log-likelihood of each document's response, in nats, summed over its tokens."""
    states = response_states(model.network, collate(group, model.pad_token_id, model.network.device))
    losses = [
        torch.nn.functional.cross_entropy(states.logits(rows).float(), states.targets[rows], reduction="none")
        for rows in chunks(len(states.targets), len(states.output.weight))
    ]
    counts = [document.response_tokens for document in group]
    sums = [float(part.double().sum()) for part in torch.cat(losses).split(counts)]
    for document, total in zip(group, sums, strict=True):
        if not math.isfinite(total):
            raise RadistillError(f"perplexity: the model's loss on {document.id} is not finite")
    return sums


TASKS = (Measured("perplexity", _measure, data_names=("perplexity",)),)
