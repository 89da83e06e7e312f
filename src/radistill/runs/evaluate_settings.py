"""What is measured on the held-out data."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class EvaluateSettings(BaseModel):
    """How the hybrids are measured against the model that they came from."""

    model_config = ConfigDict(extra="forbid")

    exact_match: bool = Field(default=True, description="generate answers and check them, where data has a verifier")
    max_new_tokens: int = Field(default=256, ge=1, description="longest answer; an unfinished one counts as wrong")
    batch_size: int = Field(default=16, ge=1, description="answers generated at once")
    tokens_per_batch: int = Field(default=2048, ge=1, description="padded tokens in one forward pass")
    tasks: list[str] = Field(
        default=[],
        description="asked of base and main hybrid, as by `radistill evaluate --tasks`; data come from the hub",
    )
    limit: int | None = Field(
        default=None, ge=1, description="examples of each task; of recall, for each length; null is the task's number"
    )
    contexts: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="tokens of recall's texts; null is its own lengths"
    )
    samples: int = Field(default=3, ge=0, description="answers shown side by side in the report")
