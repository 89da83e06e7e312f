"""Settings of the training data: one model per kind of source, told apart by `kind`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from radistill.models.server.settings import ServerSettings
from radistill.models.sources import as_path

Column = Literal["messages", "tools", "prompt", "response", "text", "answer"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ResponseSettings(_Settings):
    """Where the responses come from, and how the teacher writes them."""

    source: Literal["auto", "teacher", "data"] = "auto"
    """`data` takes the responses of the data, `teacher` lets the teacher write all of them (self-data distillation),
    `auto` lets it write only those that are missing."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response that the teacher writes, in tokens."""

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0 takes the likeliest token each time; 1 samples from the teacher as it is."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """When sampling: only the likeliest tokens that together have this probability."""

    batch_size: int = Field(default=16, ge=1)
    """Prompts that the teacher answers at once."""

    server: ServerSettings | None = None
    """An address: the server of the teacher, which writes there, so that its weights are not loaded here; null is
    none."""

    @property
    def needs_weights(self) -> bool:
        """Whether the teacher may have to write here."""
        return self.source != "data" and self.server is None


class RetrievalSettings(_Settings):
    """Long texts in which a number has to be found again, made from the seed: what attention layers are kept for."""

    contexts: list[Annotated[int, Field(ge=64)]] = Field(default=[512, 1024, 2048], min_length=1)
    """Their lengths, in tokens."""

    train: int = Field(default=0, ge=0)
    """Texts of each length to train on, each with eight questions; the training documents have them too."""

    calibration: int = Field(default=4, ge=1)
    """Texts of each length on which the layers are judged."""

    heldout: int = Field(default=16, ge=1)
    """Texts of each length on which `tradeoff` measures what is found."""

    @field_validator("contexts")
    @classmethod
    def _each_once(cls, contexts: list[int]) -> list[int]:
        if len(set(contexts)) < len(contexts):  # a text that is there twice would count as two
            raise ValueError("must be different lengths")
        return contexts


class _Data(_Settings):
    train: int = Field(default=1000, ge=1)
    """Examples to train on."""

    calibration: int = Field(default=32, ge=1)
    """Examples on which the layers are judged."""

    heldout: int = Field(default=64, ge=1)
    """Examples kept for evaluation; none of their prompts is in the other splits."""

    calibration_from: Literal["train", "own"] = "train"
    """`train` takes the first training examples for calibration too, so that the teacher need not write more;
    `own` draws separate ones."""

    responses: ResponseSettings = Field(default_factory=ResponseSettings)
    """Where the responses come from."""

    loss_on: Literal["response", "all"] = "response"
    """Which tokens of the training documents count: those of the response, or all but the first. Calibration and
    evaluation always look at the response (of a plain text, at all tokens but the first)."""

    max_length: int = Field(default=2048, ge=2)
    """Longer documents (prompt and response, in tokens) are left out and counted in a note, never cut."""

    retrieval: RetrievalSettings | None = None
    """Long texts in which a number has to be found again, beside the others; null is none."""

    system: str | None = None
    """System prompt for conversations that have none; without it, the chat template decides."""

    def longest(self, context: int | None) -> int:
        """Tokens of the longest document, for a model of this context; None has no end."""
        return min(self.max_length, context or self.max_length)


class JsonlData(_Data):
    """Rows of a JSON-lines file."""

    kind: Literal["jsonl"] = "jsonl"
    """This source."""

    path: Path
    """File with one JSON object a line: `messages`, `prompt`, `prompt` and `response`, or `text`."""

    heldout_path: Path | None = None
    """File of its own for the held-out examples; without it they are drawn from `path`."""


class HubData(_Data):
    """A data set that the `datasets` library loads."""

    kind: Literal["datasets"] = "datasets"
    """This source."""

    id: Annotated[str, AfterValidator(as_path)] = Field(min_length=1)
    """Name on the hub, or a local folder: of data files, or written by `save_to_disk`."""

    config: str | None = None
    """Configuration of the data set, where it has several."""

    split: str = "train"
    """Split to draw from."""

    heldout_split: str | None = None
    """Split of its own for the held-out examples; without it they are drawn from `split`."""

    columns: dict[Column, str] = Field(default_factory=dict)
    """Where the columns have other names: ours to theirs, such as `prompt: question`. If set, only these are read."""


class ReasoningGymData(_Data):
    """Exercises that the package `reasoning-gym` generates, with their verifiers."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    """This source."""

    tasks: dict[str, dict[str, Any]] = Field(default={"gsm_symbolic": {}}, min_length=1)
    """Names of tasks, in equal shares: a list, or a mapping to the task's own options (`codeio: {difficulty: 2}`)."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _list_to_mapping(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        tasks: dict[Any, Any] = {}
        for entry in value:
            if not isinstance(entry, str | dict):
                raise ValueError(f"a task is a name, not {entry!r}")
            for name, options in ({entry: {}} if isinstance(entry, str) else entry).items():
                if name in tasks:
                    raise ValueError(f"{name} is listed twice")
                tasks[name] = options or {}
        return tasks

    @field_validator("tasks")
    @classmethod
    def _no_reserved_options(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            if reserved := {"seed", "size"} & options.keys():
                raise ValueError(f"{name}: {', '.join(sorted(reserved))} follow from the recipe's seed and counts")
        return value


DataSettings = Annotated[JsonlData | HubData | ReasoningGymData, Field(discriminator="kind")]
