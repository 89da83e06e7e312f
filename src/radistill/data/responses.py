"""Self-data distillation: the teacher writes the responses that the student will learn (arXiv 2410.09982)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from radistill.data.examples import Example
from radistill.data.settings import ResponseSettings
from radistill.errors import RadistillError
from radistill.models.endings import turn_end_tokens
from radistill.models.generation import generate
from radistill.models.loading import Model
from radistill.models.pictures import Images
from radistill.models.server.served import Server
from radistill.processes import ALONE, Processes


class Response(NamedTuple):
    """What the teacher wrote: token ids with the end of the turn, its text without, and whether it came to an end."""

    tokens: list[int]
    text: str
    finished: bool


def teacher_writes(example: Example, settings: ResponseSettings) -> bool:
    """Whether the teacher is to write the response of an example.

    Raises:
        RadistillError: if `source` is `data` and the example has no response, or `teacher` and it is a text.
    """
    if example.text is not None:
        if settings.source == "teacher":
            raise RadistillError(
                f"{example.id}: is a text, to which the teacher writes no response; "
                "set data.responses.source to auto, or give prompts"
            )
        return False
    if settings.source == "data" and example.response is None:
        raise RadistillError(f"{example.id}: has no response; set data.responses.source to auto or teacher")
    return settings.source == "teacher" or example.response is None


def write_responses(
    teacher: Model,
    prompts: Sequence[Sequence[int]],
    settings: ResponseSettings,
    *,
    seed: int,
    cache: Path | None,
    server: Server | None = None,
    description: str = "teacher writes",
    processes: Processes = ALONE,
    images: Sequence[Images | None] | None = None,
) -> list[Response]:
    """Let the teacher answer tokenised prompts; see `generate` for cache, seeds, server and processes.

    Raises:
        RadistillError: as `models.generation.generate`.
    """
    if not prompts:
        return []
    ends = turn_end_tokens(teacher)
    # Rows of the embedding beyond the tokenizer's tokens are padding: no text, and a student may have fewer of them.
    tokens = max(teacher.tokenizer.get_vocab().values()) + 1
    written = generate(
        teacher,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        batch_size=settings.batch_size,
        cache=cache,
        stops=ends,
        vocabulary=tokens,
        description=description,
        server=server,
        processes=processes,
        images=images,
    )
    return [
        Response(tokens, str(teacher.tokenizer.decode(tokens, skip_special_tokens=True)), tokens[-1] in ends)
        for tokens in written
    ]
