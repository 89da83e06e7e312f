"""What the files of a run hold, as far as somebody reads it. What is absent or null was not measured."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from radistill.files import read_json

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Divergence = Annotated[float, Field(ge=-0.001, allow_inf_nan=False)]
"""Never below zero but for rounding."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Content(BaseModel, extra="allow"):
    """A JSON object with fields that are checked and others that are not."""

    def given(self) -> dict[str, Any]:
        """What the file says, and no defaults."""
        return self.model_dump(exclude_unset=True)


class Step(Content):
    """A finished step in run.json."""

    seconds: Positive | None = None
    finished: str = ""
    versions: dict[str, str] = {}
    recipe: dict[str, Any] = {}
    blocks: str = ""


class Record(Content):
    """run.json."""

    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    seed: Count | None = None
    stages: dict[str, Step] = {}


class TaskFigures(Content):
    """Of a task, or of a group of its examples, in evaluation.json."""

    n: Count | None = None
    accuracy: Share | None = None
    interval: tuple[Share, Share] | None = None
    unfinished: Count | None = None
    nats_per_byte: Positive | None = None
    perplexity: Positive | None = None
    groups: dict[str, "TaskFigures"] = {}


class Figures(Content):
    """Of a model in evaluation.json."""

    kl: Divergence | None = None
    agreement: Share | None = None
    sampled_acceptance: Share | None = None
    perplexity: Positive | None = None
    exact_match: Share | None = None
    exact_match_n: Count | None = None
    exact_match_interval: tuple[Share, Share] | None = None
    unfinished: Count | None = None
    kv_bytes_per_token: Count | None = None
    ssm_state_bytes: Count | None = None
    n_documents: Count | None = None
    n_tokens: Count | None = None
    tasks: dict[str, TaskFigures] | None = None


class Evaluation(Content):
    """evaluation.json: figures by model, and samples."""

    samples: list[dict[str, str]] = []
    __pydantic_extra__: dict[str, Figures] = Field(init=False)

    def given(self) -> dict[str, Any]:
        """As in the file, where the samples come last."""
        found = super().given()
        return {name: found[name] for name in sorted(found, key=lambda name: name == "samples")}


class Fit(Content):
    """Of a layer in align.json."""

    layer: Count
    unexplained_before: Positive | None = None
    unexplained_after: Positive | None = None
    steps: Count | None = None
    seconds: Positive | None = None
    losses: list[Number] = []
    gradient_norms: list[Positive] = []


class Align(Content):
    """align.json."""

    layers: list[Fit] = []
    tokens: Count | None = None
    seconds: Positive | None = None


class TradeOffPoint(Content):
    """The best set of one size in tradeoff.json; size 0 is the model itself."""

    budget: Count
    layers: list[Count]
    kl: Divergence
    kl_interval: tuple[Number, Number]
    acceptance_rate: Share
    accepted_length: Positive
    found: Count | None = None
    of: Count | None = None
    both: Count | None = None
    recall: Positive | None = None
    recall_interval: tuple[Positive, Positive] | None = None
    cache_bytes: dict[str, Count] = {}


class TradeOff(Content):
    """tradeoff.json: what is kept for every number of layers that go, and what was promised of it."""

    points: Annotated[list[TradeOffPoint], Field(min_length=1)]
    retrieval_texts: Count = 0
    keep: dict[Literal["kl", "recall"], Number] = {}
    budget: Count | None = None

    @model_validator(mode="after")
    def _chosen(self) -> "TradeOff":
        if self.budget is not None and self.budget not in [point.budget for point in self.points]:
            raise ValueError(f"budget is {self.budget}, which no point has")
        return self


class TaskDifference(Content):
    """The hybrid's share of right answers less the model's, on the same examples."""

    difference: Number
    interval: tuple[Number, Number]
    p: Share
    n: Count


class Candidate(Content):
    """A trained hybrid that was asked the tasks of a promise."""

    budget: Count
    layers: list[Count]
    tasks: dict[str, TaskDifference]
    is_kept: bool


class Promise(Content):
    """promise.json: the hybrids that were tried for the tasks of `diagnose.keep`, in their order."""

    keep: dict[str, Number]
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    budget: Count | None = None


class TrainingStep(Content):
    """Of the curve of a training."""

    step: Count | None = None
    tokens: Count | None = None
    loss: Number | None = None
    on_policy: Share | None = None
    learning_rate: Positive | None = None
    gradient_norm: Positive | None = None


class Measure(Content):
    """A held-out measure of a training."""

    step: Count | None = None
    tokens: Count | None = None
    kl: Divergence | None = None
    agreement: Share | None = None
    sampled_acceptance: Share | None = None
    cross_entropy: Positive | None = None


class Training(Content):
    """distill.json and finetune.json."""

    steps: Count | None = None
    kept_step: Count | None = None
    tokens: Count | None = None
    response_tokens: Count | None = None
    seconds: Positive | None = None
    curve: list[TrainingStep] = []
    evaluations: list[Measure] = []
    heldout_kl: Literal["full", "top-k"] = "full"


class Size(Content):
    """Of a model in savings.json."""

    parameters: Count | None = None
    weight_bytes: Count | None = None
    kv_bytes_per_token: Count | None = None
    state_bytes: Count | None = None
    cache_bytes: dict[str, Count] = {}


class Drafted(Content):
    """Self-speculation of a model at a context."""

    tokens_per_second: Positive
    acceptance_rate: Share


class Passed(Content):
    """A pass of a model over a context."""

    prefill_seconds: Seconds
    step_seconds: list[Seconds] = Field(min_length=1)
    cache_bytes: Count


class Speed(Content):
    """Of a model at a context."""

    prefill_tokens_per_second: Positive | None = None
    first_token_seconds: Positive | None = None
    decode_tokens_per_second: Positive | None = None
    decode_range: list[Positive] = []
    peak_bytes: Count | None = None
    cache_bytes: Count | None = None
    self_speculation: Drafted | None = None
    passes: list[Passed] = []
    drafted: list[Drafted] = []


LONG = 16_384
"""From so many tokens on, a pass of savings takes so long that one to warm up would only cost time."""


class At(Content):
    """A context in savings.json."""

    context: Count
    ratios: dict[str, list[Positive]] = {}
    base: Speed = Speed()
    hybrid: Speed = Speed()


class Savings(Content):
    """savings.json."""

    settings: dict[str, int | None] = {}
    device: str = ""
    engine: str = "transformers"
    dtype: str = ""
    machine: dict[str, Any] = {}
    models: dict[str, Size] = {}
    contexts: list[At] = []


CONTENTS: dict[str, tuple[type[Content], str]] = {
    "run.json": (Record, "run"),
    "evaluation.json": (Evaluation, "evaluate"),
    "align.json": (Align, "distill"),
    "distill.json": (Training, "distill"),
    "finetune.json": (Training, "finetune"),
    "savings.json": (Savings, "savings"),
    "tradeoff.json": (TradeOff, "tradeoff"),
    "promise.json": (Promise, "diagnose"),
}
"""By the name of the file, with the command that makes it."""


def read_content(path: Path) -> dict[str, Any]:
    """What a file of a run says.

    Raises:
        RadistillError: naming the file and the field that cannot be, and the command that makes it anew.
    """
    kind, command = CONTENTS[path.name]
    return read_json(path, kind, way_out=f"; without this file, `radistill {command}` makes it anew").given()


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The mappings in the list `value`; anything else is left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
