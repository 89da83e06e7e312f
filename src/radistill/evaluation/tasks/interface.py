"""What a task is: examples that a model answers and a judge, or a measure of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from radistill.data.examples import Example
from radistill.evaluation.results import Row
from radistill.models.loading import Model
from radistill.processes import Processes


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are run; everything here may change a figure.

    Attributes:
        data: files to read instead of the hub, by the name of the task.
        limit: how many examples; None is the task's own number (of recall: for each kind and context).
        max_new_tokens: longest answer; None is the task's own number.
        batch_size: answers generated at once; of perplexity, texts of at most 2,048 tokens together.
        contexts: lengths of recall's contexts, in tokens; None is the task's own.
        seed: for tasks whose examples are generated.
    """

    data: dict[str, Path] = field(default_factory=dict)
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    contexts: tuple[int, ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response.

    Attributes:
        correct: whether it counts.
        answer: what was taken for the answer; None if there was none.
    """

    correct: bool
    answer: str | None


@dataclass(frozen=True)
class Generated:
    """A task whose examples the model answers greedily.

    Attributes:
        name: as in `--tasks`.
        read: the examples; `group` in a verifier puts an example into a line of its own in the summary.
        judge: whether a response is right.
        max_new_tokens: longest answer, unless the settings say otherwise.
        is_short: whether an answer is a word or a number, so that no setting makes it longer.
        stops: texts that end the answer of a model without turns, which goes on with the next question or line.
        data_names: names under which `TaskSettings.data` may have its file; the first that has one counts.
        has_contexts: whether its examples are made in the lengths of `TaskSettings.contexts`.
    """

    name: str
    read: Callable[[Model, TaskSettings], list[Example]]
    judge: Callable[[Example, str], Verdict]
    max_new_tokens: int
    is_short: bool = False
    stops: tuple[str, ...] = ()
    data_names: tuple[str, ...] = ()
    has_contexts: bool = False

    def longest_answer(self, settings: TaskSettings) -> int:
        """Tokens of the longest answer."""
        asked = settings.max_new_tokens or self.max_new_tokens
        return min(asked, self.max_new_tokens) if self.is_short else asked

    def answer_in(self, response: str) -> tuple[str, bool]:
        """What of a response is the answer, and whether one of the stops ended it."""
        text = response.lstrip()
        ends = [text.index(stop) for stop in self.stops if stop in text]
        return (text[: min(ends)], True) if ends else (response, False)


class Measure(Protocol):
    """Runs a task to its end and hands over its rows as they come; what it has done it may keep in `cache`.

    Of several processes, all call it, and each row is handed over by one.
    """

    def __call__(
        self, model: Model, settings: TaskSettings, keep: Callable[[Row], None], cache: Path, processes: Processes
    ) -> None: ...


@dataclass(frozen=True)
class Measured:
    """A task that does more, or other things, than generating answers.

    Attributes:
        name: as in `--tasks`.
        measure: what it does.
        data_names: names under which `TaskSettings.data` may have its file; the first that has one counts.
    """

    name: str
    measure: Measure
    data_names: tuple[str, ...] = ()


Task = Generated | Measured
