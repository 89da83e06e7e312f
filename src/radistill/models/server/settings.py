"""What a recipe says about a server."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from radistill.effects import NOT_COUNTED

VLLM = "vllm"
"""In place of an address: vLLM, which is started for the time that it is needed."""


def _address(url: str) -> str:
    """The address without `/v1`, with which many write it. A wrong one is not repeated: there may be a key in it."""
    if url == VLLM:
        return url
    try:
        parts = urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise PydanticCustomError("address", "must be an address ({reason})", {"reason": str(error)}) from None
    if bad:
        raise PydanticCustomError("address", f"must be an address, such as http://127.0.0.1:8000, or {VLLM}")
    if parts.username is not None or parts.query or parts.fragment:
        message = "must be an address alone; a key belongs in the environment variable RADISTILL_SERVER_KEY"
        raise PydanticCustomError("address", message)
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class ServerSettings(BaseModel, extra="forbid"):
    """An OpenAI-compatible server, vLLM's or llama.cpp's. `server: URL` is short for `server: {url: URL}`, and
    `server: vllm` starts one."""

    url: Annotated[str, AfterValidator(_address), NOT_COUNTED] = Field(
        description="where it listens, such as `http://127.0.0.1:8000`; its key, if it wants one, is in the "
        "environment variable RADISTILL_SERVER_KEY. Or `vllm`: vLLM's server is started on this machine while it is "
        "needed; if vLLM has an environment of its own, RADISTILL_VLLM names the Python of that"
    )
    model: str | None = Field(
        default=None, min_length=1, description="the model's name there; null is the only one that it has"
    )
    requests: Annotated[int, NOT_COUNTED] = Field(default=32, ge=1, description="requests under way at once")
    retries: Annotated[int, NOT_COUNTED] = Field(
        default=8,
        ge=0,
        description="how often a request is made again where the server is away or busy: at once, then after 2, 4, 8 … "
        "seconds, at most 60; not of a vLLM that is started here",
    )

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one(self) -> "ServerSettings":
        if self.starts_vllm and self.model is not None:
            raise PydanticCustomError("address", "model is for a server that has several, and vllm has the one")
        return self

    @property
    def starts_vllm(self) -> bool:
        """Whether the server is not there yet."""
        return self.url == VLLM
