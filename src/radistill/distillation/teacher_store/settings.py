"""What a recipe says about a stored teacher."""

from typing import Annotated

from pydantic import BaseModel, Field

from radistill.effects import NOT_COUNTED
from radistill.models.server.settings import ServerSettings


class TeacherStoreSettings(BaseModel, extra="forbid"):
    """What is kept of the teacher's next-token distributions, and where."""

    top_k: int = Field(
        default=64,
        ge=1,
        description="largest probabilities kept of each response token; the rest is kept as one sum. As many as the "
        "vocabulary has keep all",
    )
    tokens_per_batch: int = Field(
        default=2048, ge=1, description="padded tokens in one forward of the teacher while it writes"
    )
    server: ServerSettings | None = Field(
        default=None,
        description="an address: vLLM's server, which reads in the teacher's place (`--max-logprobs` there must allow "
        "`top_k`); the teacher's weights are then not loaded for it; null is none",
    )
    folder: Annotated[str | None, NOT_COUNTED] = Field(
        default=None,
        min_length=1,
        description="where the stores lie, each under its own key; null is `teacher_store` in the run folder",
    )
