"""The data stage: draw examples, let the teacher write what is missing, tokenise, and keep it in a folder."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from radistill.console import note
from radistill.data.documents import prompt_tokens, response_tokens, with_kept_date
from radistill.data.examples import Example
from radistill.data.records import SPLITS, DataSplits, Record, example_of
from radistill.data.responses import teacher_writes, write_responses
from radistill.data.retrieval import check_contexts, retrieval_records
from radistill.data.settings import DataSettings, ResponseSettings
from radistill.data.sources import SOURCES, Draw, draw, settings_of, take
from radistill.errors import RadistillError
from radistill.files import hash_json, read_kept, write_kept
from radistill.models.loading import Model
from radistill.models.pictures import Images
from radistill.models.sequences import Document
from radistill.models.server.served import Server
from radistill.models.server.vllm import opened
from radistill.processes import ALONE, Processes


def prepare(
    teacher: Model,
    settings: DataSettings,
    *,
    seed: int,
    folder: Path | None,
    without: Collection[str] = (),
    replacing: Callable[[], object] = lambda: None,
    processes: Processes = ALONE,
) -> DataSplits:
    """Prepare the training, calibration and held-out data of a run.

    Args:
        teacher: writes the missing responses, for which it needs its weights, unless a server does; its tokenizer and
            chat template make the tokens.
        settings: the source, the counts, and how responses come about.
        seed: decides which examples are drawn, and the responses where they are sampled.
        folder: where the splits are written (`train.jsonl` and the others, see `DataSplits`), and where the
            responses are kept as they are written, so that a repeated call goes on where a killed one was. None keeps
            nothing.
        without: prompts that no split may have, such as those that something else is evaluated on.
        replacing: called when all is ready, before the splits that `folder` has are replaced.
        processes: who share the writing of responses; all must call this together, and all get the splits.

    Raises:
        RadistillError: on whatever is wrong with the data, and for a server that does not serve this teacher.
    """
    check_contexts(settings, teacher.context_length)
    drawn = processes.decide(lambda: _draw_once(settings, seed, folder, without))
    tokenizer = teacher.tokenizer
    if folder is not None:
        tokenizer = processes.decide(lambda: with_kept_date(teacher.tokenizer, folder))
    # First, because what cannot be is to be said before the teacher writes.
    longer, *others = (
        [] if settings.retrieval is None else retrieval_records(tokenizer, settings.retrieval, split, seed)
        for split in SPLITS
    )
    writes = any(teacher_writes(one, settings.responses) for part in vars(drawn).values() for one in part)
    with opened(settings.responses.server if writes else None, teacher) as server:
        if server is not None:
            server.make_room(settings.longest(teacher.context_length) + settings.responses.max_new_tokens)
        write = partial(_records, teacher, tokenizer, settings=settings, seed=seed, folder=folder)
        write = partial(write, server=server, processes=processes)
        heldout, train = write(drawn.heldout, split="heldout"), write(drawn.train, split="train")
        calibration = (
            train[: settings.calibration]
            if settings.calibration_from == "train"
            else write(drawn.calibration, split="calibration")
        )
    if settings.loss_on == "all":  # a matter of training alone: diagnosis and evaluation look at responses
        train = [replace(record, document=replace(record.document, response_start=1)) for record in train]
    splits = DataSplits([*train, *longer], calibration, heldout, *others)
    if folder is not None and processes.is_main:
        replacing()
        splits.save(folder)
    return splits


def load_data(
    source: str,
    teacher: Model,
    count: int,
    seed: int = 0,
    max_new_tokens: int = 96,
    *,
    temperature: float = 0.0,
    rewrite: bool = False,
) -> list[Document]:
    """A few documents for the library: from a source in one word, with the teacher's responses where missing.

    Args:
        source: as `data.sources.settings_of` reads it.
        teacher: writes the missing responses.
        count: number of examples; documents longer than the model's context are left out of them.
        seed: decides which examples are drawn, and the responses where they are sampled.
        max_new_tokens: longest written response.
        temperature: of the teacher; 0 takes the likeliest token.
        rewrite: let the teacher write every response, also of examples that have one.
    """
    if count < 1:
        raise RadistillError(f"count is {count}, but must be at least 1")
    responses = ResponseSettings(
        source="teacher" if rewrite else "auto", max_new_tokens=max_new_tokens, temperature=temperature
    )
    settings = settings_of(source, train=count, responses=responses)
    rows = SOURCES[settings.kind](settings, seed)
    examples = take(iter(rows.examples), "count", count, set(), rows.origin)
    return [record.document for record in _records(teacher, teacher.tokenizer, examples, settings, seed, None, "data")]


def has_images(source: str, seed: int = 0) -> bool:
    """Whether the first example of a source in one word has images."""
    settings = settings_of(source)
    if settings.kind == "reasoning-gym":
        return False
    first = next(iter(SOURCES[settings.kind](settings, seed).examples), None)
    return first is not None and bool(first.images)


def _draw_once(settings: DataSettings, seed: int, folder: Path | None, without: Collection[str]) -> Draw:
    """Draw the examples, and keep them where a second draw may differ: the cached responses belong to the first."""
    if folder is None or settings.kind != "reasoning-gym":
        return draw(settings, seed, without)
    path = folder / "drawn.json"
    key = hash_json([settings.model_dump(mode="json"), seed, sorted(without)])
    kept = read_kept(path, key)
    if kept is None:
        fresh = draw(settings, seed, without)
        kept = {split: [one.to_row() for one in part] for split, part in vars(fresh).items()}
        write_kept(path, key, kept)
    return Draw(*([example_of(row) for row in kept[split]] for split in SPLITS))


def _records(
    teacher: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: DataSettings,
    seed: int,
    folder: Path | None,
    split: str,
    server: Server | None = None,
    processes: Processes = ALONE,
) -> list[Record]:
    """Tokenise examples, with the teacher's response where it is to write one; those that are too long are left out."""
    limit = settings.longest(teacher.context_length)
    reader = teacher.reader
    prompts = [prompt_tokens(example, tokenizer, settings.system, reader) for example in examples]
    images = [Images(example.images, reader) if reader is not None and example.images else None for example in examples]
    # A prompt that leaves no room for a response is not worth the teacher's time.
    asked = [
        index
        for index, example in enumerate(examples)
        if teacher_writes(example, settings.responses) and len(prompts[index]) < limit
    ]
    responses = write_responses(
        teacher,
        [prompts[index] for index in asked],
        settings.responses,
        seed=seed,
        cache=None if folder is None else folder / "responses.jsonl",
        server=server,
        description=f"teacher writes {split}",
        processes=processes,
        images=[images[index] for index in asked],
    )
    written = dict(zip(asked, responses, strict=True))

    records, shortened = [], 0
    for index, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        finished, cut = True, False
        if example.text is not None:
            prompt, response = prompt[:1], prompt[1:]
        elif index in written:
            response, text, finished = written[index]
            example = replace(example, response=text, response_fields=None)
        elif teacher_writes(example, settings.responses):
            continue
        else:
            response, cut = response_tokens(example, tokenizer, settings.system)
        shown = images[index]
        if shown is not None and shown.reader.token in response:  # which stands for no image there
            continue
        if prompt and response and len(prompt) + len(response) <= limit:
            shortened += cut
            document = Document(example.id, (*prompt, *response), len(prompt), shown)
            records.append(Record(example, document, finished))
    if shortened:
        note(f"data: the chat template leaves out a part of {shortened} of {len(records)} {split} responses")
    _say_what_happened(split, len(examples), records, limit)
    return records


def _say_what_happened(split: str, asked: int, records: list[Record], limit: int) -> None:
    if not records:
        raise RadistillError(
            f"data.max_length: none of the {asked} {split} examples has between 2 and {limit} tokens "
            "(data.max_length, or the model's context)"
        )
    if missing := asked - len(records):
        note(f"data: {missing} of {asked} {split} examples left out, longer than {limit} tokens or of one token only")
    if unfinished := sum(not record.finished for record in records):
        note(f"data: {unfinished} of {len(records)} {split} responses were cut at max_new_tokens")
